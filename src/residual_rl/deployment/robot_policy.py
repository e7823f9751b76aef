"""Exported policies on robots or envs of another program, in the units of the robot's own software."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.base_policies.trained_run import make_exported
from residual_rl.config import TrainCfg
from residual_rl.deployment.measured_arms import MeasuredArms
from residual_rl.envs.spaces import conversion_inputs, is_image, observed, shape_of
from residual_rl.envs.task_env import TaskEnv
from residual_rl.errors import ConfigError
from residual_rl.exported_policy import ExportedPolicy
from residual_rl.registry import TASKS, load
from residual_rl.robots.arm_driver import PoseSource
from residual_rl.types import Obs, check_finite

POSITION = "joint_position"
"""The observation that every robot measures."""


def make_env(cfg: TrainCfg, num_envs: int) -> TaskEnv:
    """The env of a run, as the source of spaces, units and kinematics; it is not meant to be stepped.

    It adds no imperfections, such as noise, to those of the arm. Raises `ConfigError` for a task that is not
    one of a robot with known units.
    """
    spec = TASKS.get(cfg.task_id)
    env = load(spec.make)(spec.for_hardware(cfg.task), num_envs, cfg.run.num_threads, "cpu")
    if not isinstance(env, TaskEnv) or env.hardware is None:
        raise ConfigError(
            f"task {cfg.task_id!r} has no units of a robot (`hardware`), which a policy for robots acts in"
        )
    return env


class RobotPolicy:
    """Base and residual of a run, for B robots or envs that another program steps.

    Each row of a batch has a state of its own: chunks, phases, histories. A batch of another size starts
    anew.

    Args:
        exported: the policy.
        file: where it was read from.

    Raises:
        ConfigError: the policy does not fit its task, or that is not a task of a robot.
        CheckpointError: a file of the base policy is missing, or has changed.
    """

    def __init__(self, exported: ExportedPolicy, file: Path):
        self._exported = exported
        self._file = file
        self.pose_source: PoseSource | None = None
        """Poses of the task's object, for a robot that does not observe it; may be set at any time."""
        self._start(1)
        hardware = self._env.hardware
        assert hardware is not None
        self.hardware = hardware
        """Names and units of the joints."""
        self.inputs = tuple(self._policy.policy.inputs)
        """Names of the observations that it reads."""
        images = [name for name in self.inputs if is_image(observed(self._env)[name])]
        self.cameras = {name: shape_of(self._env, name) for name in images}
        """The cameras among them, with their height, width and channels."""
        self._arms.measure(torch.zeros(1, len(hardware.joint_names), dtype=torch.float64), None)
        self.needs_pose = tuple(self._unknown(self._arms.observe()))
        """Those that depend on the pose of the task's object."""
        self._arms.reset()

    def _start(self, num_robots: int) -> None:
        """New states for the rows of a batch."""
        self._num_robots = num_robots
        self._env = make_env(self._exported.cfg, num_robots)
        policy = make_exported(self._exported, self._file, False, self._env)
        self._policy = BasePolicyExecutor(policy, self._env, f"the policy in {self._file}")
        self._needed = tuple(dict.fromkeys([*policy.inputs, *conversion_inputs(self._env)]))
        self._arms = MeasuredArms(self._env)

    def reset(self) -> None:
        """Start new episodes in all rows."""
        self._policy.reset(torch.ones(self._num_robots, dtype=torch.bool))
        self._arms.reset()

    @torch.no_grad()
    def act(
        self, joints: Tensor, environment: Tensor | None = None, images: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The joint targets [B, J] to command next, float64 in hardware units. Call it once per policy step.

        Args:
            joints: measured joint positions [B, J] in hardware units.
            environment: [B, E], the observations `Task.environment_state` joined, of a simulator. None: what
                the arm does not measure is computed, or comes from `pose_source`.
            images: [B, H, W, C] uint8 by camera.

        Raises:
            ConfigError: a shape is wrong, a camera is missing, or a pose source.
            NonFiniteError: a value is NaN or infinite.
            ArmError: the pose source fails, or has not seen the object for a while.
        """
        # Check and convert what was measured.
        expected = len(self.hardware.joint_names)
        if joints.dim() != 2 or joints.shape[1] != expected:
            raise ConfigError(
                f"the joint positions have shape {tuple(joints.shape)}; expected (robots, {expected}):"
                f" {', '.join(self.hardware.joint_names)}"
            )
        check_finite("the measured joint positions", joints)
        if len(joints) != self._num_robots:
            self._start(len(joints))
        position = self.hardware.from_hardware(joints.cpu())

        # Query the policy, and convert its actions to joint targets.
        if environment is None:
            self._arms.measure(position, self.pose_source)
            obs = self._arms.observe() | self._images(images or {})
            self._check_poses(obs)
            target = self._arms.command(self._policy.act(obs))
        else:
            obs = self._split(environment.cpu(), position) | self._images(images or {})
            action = self._policy.act(obs)
            target = self._env.actions_to_targets(action[:, None], obs)[:, 0]
        return self.hardware.to_hardware(target)

    def _split(self, environment: Tensor, position: Tensor) -> Obs:
        """The observations in `environment` [B, E] by name, and those that are made of them."""
        names = self._env.task.environment_state
        sizes = [shape_of(self._env, name)[0] for name in names]
        if environment.shape != (self._num_robots, sum(sizes)):
            parts = ", ".join(f"{name} {size}" for name, size in zip(names, sizes, strict=True))
            raise ConfigError(
                f"the environment's state has shape {tuple(environment.shape)}; expected"
                f" ({self._num_robots}, {sum(sizes)}): {parts}"
            )
        check_finite("the environment's state", environment)
        obs = dict(zip(names, environment.float().split(sizes, 1), strict=True))
        obs.setdefault(POSITION, position.float())
        return self._env.task.with_joined(obs)

    def _images(self, images: Mapping[str, Tensor]) -> Obs:
        """The images that the policy reads."""
        for name in self.cameras:
            expected = (self._num_robots, *shape_of(self._env, name))
            if name not in images:
                has = ", ".join(images) or "none"
                raise ConfigError(f"the policy reads the camera {name!r}; the cameras of the robot: {has}")
            if tuple(images[name].shape) != expected or images[name].dtype != torch.uint8:
                raise ConfigError(
                    f"camera {name!r} gives {images[name].dtype} {tuple(images[name].shape)}; expected"
                    f" torch.uint8 {expected} (robots, height, width, channels)"
                )
        return {name: images[name].cpu() for name in self.cameras}

    def _unknown(self, obs: Obs) -> list[str]:
        """The observations that the policy needs and that are NaN in `obs`."""
        return [name for name in self._needed if name in obs and not torch.isfinite(obs[name]).all()]

    def _check_poses(self, obs: Obs) -> None:
        """Raise `ConfigError` if the policy needs poses, and there is no pose source."""
        unknown = self._unknown(obs)
        if unknown and self.pose_source is None:
            raise ConfigError(
                f"the policy observes {', '.join(unknown)}, which depends on the pose of the"
                f" {self._env.task.pose_object}: a robot needs a pose source, MODULE:CALLABLE"
            )
