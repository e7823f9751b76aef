"""An arm as the robot of a training: made by name, and moved to the start of an episode only when told to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from residual_rl.base_policies.callables import load_callable
from residual_rl.config import TrainCfg
from residual_rl.deployment.arm_physics import ArmPhysics, make_arm_env
from residual_rl.envs.task import Quantities
from residual_rl.errors import ConfigError
from residual_rl.factory import make_residual_env_on
from residual_rl.registry import TASKS, load
from residual_rl.residual_env import ResidualEnv
from residual_rl.robots.arm_driver import ArmDriver, PoseSource


@runtime_checkable
class ResettableArm(Protocol):
    """A simulated arm."""

    def reset(self, seed: int) -> None:
        """Begin the episode `seed`."""
        ...


class TrainingArm:
    """Begins episodes on an arm.

    At the end of an episode the env calls for the next one at once; then the arm stays where it is, until
    `begin` is called.

    Args:
        env: the env of the arm.
    """

    def __init__(self, env: ResidualEnv):
        physics = getattr(env.vec_env, "physics", None)
        assert isinstance(physics, ArmPhysics)
        self.driver = physics.driver
        self._env = env
        self._seed: int | None = None
        physics.begin_episode = self._begin

    def begin(self, seed: int) -> None:
        """Bring arm and scene to the start of the episode `seed`; may block."""
        self._seed = seed
        try:
            self._env.reset(seed=[seed])
        finally:
            self._seed = None

    def _begin(self, episode: Quantities) -> bool:
        if self._seed is None:
            return False
        if isinstance(self.driver, ResettableArm):
            self.driver.reset(self._seed)
        return True


def make_training_arm(cfg: TrainCfg, name: str, pose_source: str, real_time: bool) -> ResidualEnv:
    """The env of the arm `MODULE:NAME`, which is called with the settings of the task and `real_time`, and
    gives a driver that is connected here.

    Without a `pose_source` (`MODULE:NAME`, called without arguments, or the source itself), the driver is the
    source if it can be called.
    """
    driver: Any = load_callable(name, "arm")(cfg.task, real_time=real_time)
    source: PoseSource | None = driver if callable(driver) else None
    if pose_source:
        source = load_callable(pose_source, "pose_source")
    simulated = load(TASKS.get(cfg.task_id).make)(cfg.task, 1, 1, "cpu")
    if not hasattr(driver, "command"):
        raise ConfigError(f"arm must give a driver of an arm, not {type(driver).__name__}")
    driver.connect()
    return make_residual_env_on(make_arm_env(simulated, driver, source), cfg)
