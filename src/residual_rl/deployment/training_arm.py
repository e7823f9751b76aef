"""An arm as the robot of a training: guarded, and moved to the start of an episode only when told to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from residual_rl.config import TrainCfg
from residual_rl.deployment.arm_cfg import GuardCfg
from residual_rl.deployment.arm_physics import ArmPhysics, make_arm_env
from residual_rl.deployment.guarded_arm import GuardedArm
from residual_rl.deployment.learning_cfg import RobotCfg
from residual_rl.deployment.moves import move_to
from residual_rl.deployment.pose_source import BackgroundPoseSource, load_pose_source
from residual_rl.envs.task import Quantities
from residual_rl.errors import ConfigError
from residual_rl.factory import make_residual_env_on
from residual_rl.registry import TASKS, load
from residual_rl.robots.arm_driver import PoseSource
from residual_rl.robots.safety_limits import SafetyLimits
from residual_rl.utils.seeding import training_seed_start
from residual_rl.utils.text import one_line

ResetSimulation = Callable[[int], None]
"""Begins the episode of a seed on a simulated arm."""


class TrainingArm:
    """An arm with its env, on which episodes begin when `begin` is called.

    At the end of an episode the env calls for the next one at once; then the arm stays where it is.

    Args:
        cfg: the settings of the run.
        guard: the arm, not connected yet; it is connected here, and stopped by `close`.
        pose_source: poses of the task's object, if the task observes any.
        reset_simulation: of a simulated arm; any other one moves to the task's start pose.
        robot: the settings of the session.

    Raises:
        ArmError: there is no such arm.
        ConfigError: it does not fit the task.
    """

    def __init__(
        self,
        cfg: TrainCfg,
        guard: GuardedArm,
        pose_source: PoseSource | None,
        reset_simulation: ResetSimulation | None,
        robot: RobotCfg,
    ):
        self.guard = guard
        self.env = make_residual_env_on(
            make_arm_env(_simulated_env(cfg), guard, pose_source, robot.max_pose_age), cfg
        )
        """The arm with its base policy."""
        physics = getattr(self.env.vec_env, "physics", None)
        assert isinstance(physics, ArmPhysics)
        physics.begin_episode = self._begin
        self._period = physics.period
        self._pose_source = pose_source
        self._reset_simulation = reset_simulation
        self._speed = robot.start_speed
        self._seed: int | None = None
        self._should_stop: Callable[[], bool] = lambda: False
        try:
            guard.connect()
        except BaseException as error:
            self.close(one_line(error) or type(error).__name__)
            raise

    def begin(self, seed: int, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Bring the arm to the start of the episode `seed`; blocks until it is there, or `should_stop`.
        Raises `ArmError`."""
        self._seed, self._should_stop = seed, should_stop
        try:
            self.env.reset(seed=[seed])
        finally:
            self._seed = None

    def rest(self) -> None:
        """Tell that no policy acts from now on, until the next episode."""
        self.guard.rest()

    def close(self, reason: str = "the session has ended") -> None:
        """Stop the arm: hold it, or turn its torque off. May be called more than once."""
        self.guard.stop(reason)
        self.guard.disconnect()
        if isinstance(self._pose_source, BackgroundPoseSource):
            self._pose_source.close()

    def _begin(self, episode: Quantities) -> bool:
        """The reset procedure of the env."""
        self.guard.rest()
        if self._seed is None:
            return False
        if isinstance(self._pose_source, BackgroundPoseSource):  # a camera takes seconds to start
            self._pose_source.wait_for_first()
        start = episode.get("start_joint_position")
        if self._reset_simulation is not None:
            self._reset_simulation(self._seed)
        elif start is not None:
            move_to(self.guard, start[0].double().numpy(), self._speed, self._period, self._should_stop)
        return True


def make_training_arm(
    cfg: TrainCfg, robot: RobotCfg, guard: GuardCfg, lerobot_flags: Sequence[str] = ()
) -> TrainingArm:
    """The robot of LeRobot that `lerobot_flags` describe, or else the simulated arm of the task.

    Raises `ConfigError`, `MissingDependencyError` and `ArmError`.
    """
    spec, env = TASKS.get(cfg.task_id), _simulated_env(cfg)
    if env.hardware is None or spec.simulated_arm is None:
        raise ConfigError(f"task {cfg.task_id!r} has no arm: it cannot be learned on a robot")
    driver: Any
    source: PoseSource | None = None
    reset: ResetSimulation | None = None
    if lerobot_flags:
        from residual_rl.lerobot.arm import make_lerobot_arm

        cfg = dataclasses.replace(cfg, task=spec.for_hardware(cfg.task))
        driver = make_lerobot_arm(lerobot_flags, env.hardware, guard.at_exit, robot.answer_timeout)
        if driver.simulated:
            source, reset = driver.object_pose, driver.reset
    else:
        driver = load(spec.simulated_arm)(
            cfg.task, training_seed_start(cfg.run.seed), real_time=robot.real_time
        )
        source, reset = driver, driver.reset
    if robot.pose_source:
        source = BackgroundPoseSource(load_pose_source(robot.pose_source))
    limits = SafetyLimits(cfg.safety, env.hardware, env.control_hz, env.kinematics)
    return TrainingArm(cfg, GuardedArm(driver, limits, guard), source, reset, robot)


def _simulated_env(cfg: TrainCfg) -> Any:
    """The env of the task, for its spaces, units and kinematics."""
    return load(TASKS.get(cfg.task_id).make)(cfg.task, 1, 1, "cpu")
