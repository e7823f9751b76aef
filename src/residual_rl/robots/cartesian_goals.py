"""Cartesian goals of a task for a controller: position and yaw of the tool, gripper state, and phase."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from residual_rl.registry import Registry
from residual_rl.types import Obs


@dataclass(frozen=True)
class ToolGoal:
    """The goal pose of the tool in the world frame; the tool's z axis points down."""

    position: Tensor
    """[b, 3] [m]"""
    is_open: Tensor
    """[b] bool: the gripper."""
    yaw: Tensor | None = None
    """[b] [rad]: direction of the tool's y axis about the vertical, up to quarter turns; None: any."""


class CartesianGoals(ABC):
    """The goals of one task, from its named observations. It has no state: the caller keeps the phase of each
    env.

    Args:
        robot: the env's name of its robot.
    """

    inputs: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    """Observations that it reads in addition to `tcp_pose`, with their shapes without the batch."""
    phases: ClassVar[tuple[str, ...]] = ()
    """Names of the phases; an episode begins in the first."""
    grips: ClassVar[bool] = True
    """Whether the task requires a gripper."""

    def __init__(self, robot: str):
        self.robot = robot

    @abstractmethod
    def advance(self, obs: Obs, phase: Tensor, steps: Tensor) -> Tensor:
        """The new phases [b] int64 for `obs`, after `steps` [b] int64 queries in `phase` [b]."""

    @abstractmethod
    def goal(self, obs: Obs, phase: Tensor, steps: Tensor) -> ToolGoal:
        """The goal in `phase` [b], after `steps` [b] earlier queries in that phase."""


def funnel(target: Tensor, tool: Tensor, hover: float, tolerance: float = 0.01, slope: float = 3.0) -> Tensor:
    """Raise `target` [b, 3] in proportion to the horizontal distance of `tool` [b, 3], so that the tool
    approaches it from above.

    Args:
        target: target position [m].
        tool: position of the tool [m].
        hover: largest height above the target [m].
        tolerance: horizontal distance within which the target is not raised [m].
        slope: height per horizontal distance beyond `tolerance`.
    """
    beside = (target - tool)[:, :2].norm(dim=1)
    height = (slope * (beside - tolerance)).clamp(0.0, hover)
    return torch.cat([target[:, :2], (target[:, 2] + height)[:, None]], 1)


def yaw_of(pose: Tensor) -> Tensor:
    """The angle [b] about the vertical of the x axis of `pose` [b, 7], position and quaternion (w, x, y, z)
    [rad]."""
    w, x, y, z = pose[:, 3:].unbind(1)
    return torch.atan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z))


def tool_yaw(pose: Tensor) -> Tensor:
    """The angle [b] about the vertical of a tool's y axis, along which its fingers close, from its `pose` [b,
    7] [rad]."""
    w, x, y, z = pose[:, 3:].unbind(1)
    return torch.atan2(1 - 2 * (x * x + z * z), 2 * (x * y - w * z))


@dataclass(frozen=True)
class GoalsSpec:
    """Registered Cartesian goals of a task. `goals` is a `module:attribute` string."""

    id: str
    """The env's name of its task, `VecEnv.task_name`."""
    goals: str
    """A subclass of `residual_rl.robots.cartesian_goals.CartesianGoals`."""


GOALS: Registry[GoalsSpec] = Registry("task with Cartesian goals", "residual_rl.tasks.maniskill.goals")


def register_goals(spec: GoalsSpec) -> GoalsSpec:
    """Register `spec` by its id."""
    return GOALS.register(spec)
