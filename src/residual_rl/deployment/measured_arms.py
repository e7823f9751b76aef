"""Observations of arms that measure joint positions only."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from residual_rl.deployment.arm_cfg import MAX_POSE_AGE
from residual_rl.deployment.arm_quantities import arm_quantities, pose_quantities
from residual_rl.deployment.pose_source import checked_pose
from residual_rl.envs.task_env import TaskEnv
from residual_rl.errors import ArmError, ConfigError
from residual_rl.robots.arm_driver import Pose, PoseSource
from residual_rl.types import Obs


class MeasuredArms:
    """The observations of B arms, from their joint positions at each policy step.

    Velocities are finite differences at the rate of `env`; joint targets are those that `command` returned,
    and at first the measured positions. Poses of the task's object come from a pose source.

    Args:
        env: has the task and the kinematics; it is not stepped.

    Raises:
        ConfigError: `env` has no kinematics.
    """

    def __init__(self, env: TaskEnv):
        if env.kinematics is None or env.hardware is None:
            raise ConfigError("it needs an env that exposes its arm's kinematics and units")
        self._env = env
        self._kinematics = env.kinematics
        self._names = env.hardware.joint_names
        self._pose: Pose | None = None
        self._pose_is_new = False
        self._pose_seen = -torch.inf
        self.reset()

    def reset(self) -> None:
        """The next measurement is the first one of an episode."""
        self._position: Tensor | None = None
        self._target: Tensor | None = None
        self._step = -1
        self._pose = None

    def measure(self, joint_position: Tensor, pose_source: PoseSource | None) -> None:
        """Take the joint positions [B, J] in [rad] of the next policy step, and the pose of the object now.

        Raises `ArmError` if the pose source fails, or has given no new pose for `MAX_POSE_AGE`.
        """
        last = joint_position if self._position is None else self._position
        self._velocity = (joint_position - last) * self._env.control_hz
        self._position = joint_position
        self._target = joint_position if self._target is None else self._target
        self._step += 1
        if pose_source is not None and self._env.task.pose_object is not None:
            self._see(pose_source)

    def _see(self, pose_source: PoseSource) -> None:
        """The pose of the object; where it is not seen now, the last one, for a limited time."""
        name = self._env.task.pose_object
        if self._env.num_envs > 1:
            raise ConfigError(f"a pose source serves one robot, not {self._env.num_envs}")
        pose = pose_source()
        pose = None if pose is None else checked_pose(pose)
        self._pose_is_new = pose is not None and (self._pose is None or pose.time > self._pose.time)
        if self._pose_is_new:
            self._pose, self._pose_seen = pose, time.monotonic()
        if self._pose is None:
            raise ArmError(f"the pose source does not see the {name}")
        if time.monotonic() - self._pose_seen > MAX_POSE_AGE:
            raise ArmError(f"the pose source has given no new pose of the {name} for {MAX_POSE_AGE:g} s")

    def observe(self) -> Obs:
        """The named observations of the last measurement; NaN where they depend on a pose that is unknown."""
        assert self._position is not None
        assert self._target is not None
        task, num_rows = self._env.task, len(self._position)
        q = arm_quantities(self._position, self._velocity, self._names, self._kinematics)
        if task.pose_object is not None:
            q |= pose_quantities(task.pose_object, self._pose, self._pose_is_new, num_rows)
        counters = {"seed": torch.zeros(num_rows, dtype=torch.int64)}
        counters["step"] = torch.full_like(counters["seed"], self._step)
        return task.observe({**q, **counters, "joint_target": self._target})

    def command(self, action: Tensor) -> Tensor:
        """The joint targets [B, J] in [rad] that `action` [B, A] commands. The arm has its own latency, so
        that a task's does not count."""
        assert self._position is not None
        assert self._target is not None
        q = {"joint_position": self._position, "joint_target": self._target, "action": action}
        self._target = self._env.task.joint_target(action, q)
        return self._target
