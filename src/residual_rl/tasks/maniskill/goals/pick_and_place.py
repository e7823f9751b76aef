"""Cartesian goals of tasks in which an object is picked up and moved to a place."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from residual_rl.robots.cartesian_goals import CartesianGoals, ToolGoal, funnel, tool_yaw, yaw_of
from residual_rl.types import Obs

REACH, GRASP, LIFT, MOVE, RELEASE = range(5)


class PickAndPlace(CartesianGoals):
    """Reach from above, grasp, lift, move over the place and down to it, release, and retreat upwards.

    If the object is lost on the way, it is reached for again.
    """

    phases = ("reach", "grasp", "lift", "move", "release")
    hover: ClassVar[float] = 0.08
    """Height from which the object is approached [m]."""
    near: ClassVar[float] = 0.01
    """Distance between tool and grasp position at which the gripper closes [m]."""
    placed: ClassVar[float] = 0.008
    """Vertical distance from the place at which the object is released [m]."""
    close_steps: ClassVar[int] = 4
    """Number of steps for closing the gripper."""
    lowest_tool: float = 0.0
    """Lowest height of the tool [m]."""

    @abstractmethod
    def object_pose(self, obs: Obs) -> Tensor:
        """Pose of the object [b, 7]."""

    @abstractmethod
    def place(self, obs: Obs) -> Tensor:
        """Position of the object's centre at its release [b, 3]."""

    @abstractmethod
    def carry_height(self, obs: Obs) -> Tensor:
        """Height of the object's centre while it is carried [b] [m]."""

    def releases(self) -> bool:
        """Whether the object is released at its place."""
        return True

    def advance(self, obs: Obs, phase: Tensor, steps: Tensor) -> Tensor:
        tool, thing, place = obs["tcp_pose"][:, :3], self.object_pose(obs)[:, :3], self.place(obs)
        grip = self._grip(thing)
        held = self._is_held(obs, steps)
        lost = (grip - tool).norm(dim=1) > 0.04
        at_place = _beside(place, thing) & ((place - thing)[:, 2].abs() < self.placed)
        away = (place - thing).norm(dim=1) > 0.03
        over = place.clone()
        over[:, 2] = self.carry_height(obs)
        lifted = (thing[:, 2] > over[:, 2] - 0.015) | (
            _beside(place, thing) & (thing[:, 2] > place[:, 2] - self.placed)
        )
        closing = steps >= self.close_steps
        # transitions
        new = torch.where((phase == REACH) & ((grip - tool).norm(dim=1) < self.near), GRASP, phase)
        new = torch.where((phase == GRASP) & closing & held, LIFT, new)
        new = torch.where((phase == GRASP) & (steps >= 3 * self.close_steps) & ~held, REACH, new)
        new = torch.where((phase == LIFT) & lifted, MOVE, new)
        if self.releases():
            new = torch.where((phase == MOVE) & at_place, RELEASE, new)
            new = torch.where((phase == RELEASE) & (steps >= 10) & away, REACH, new)
        return torch.where(((phase == LIFT) | (phase == MOVE)) & lost, REACH, new)

    def goal(self, obs: Obs, phase: Tensor, steps: Tensor) -> ToolGoal:
        pose, tool, place = self.object_pose(obs), obs["tcp_pose"][:, :3], self.place(obs)
        thing = pose[:, :3]
        grip = self._grip(thing)
        carry = self.carry_height(obs)
        up = torch.zeros_like(tool)
        up[:, 2] = carry - thing[:, 2]
        over = _with_height(
            place, torch.where(_beside(place, thing), place[:, 2], torch.maximum(carry, place[:, 2]))
        )
        leave = tool.clone()
        leave[:, 2] += self.hover * (steps >= 3)
        # the tool's target in each phase
        wanted = {
            REACH: funnel(grip, tool, self.hover),
            GRASP: grip,
            LIFT: tool + up,
            MOVE: tool + over - thing,
            RELEASE: leave,
        }
        position = torch.stack([wanted[i] for i in range(5)], 1)[
            torch.arange(len(phase), device=phase.device), phase
        ]
        # Align the fingers with two sides of the object. Once grasped, it turns with them, so the yaw is
        # kept.
        yaw = torch.where(phase == REACH, yaw_of(pose), tool_yaw(obs["tcp_pose"]))
        return ToolGoal(position, (phase == REACH) | (phase == RELEASE), yaw)

    def _grip(self, thing: Tensor) -> Tensor:
        return _with_height(thing, thing[:, 2].clamp(min=self.lowest_tool))

    def _is_held(self, obs: Obs, steps: Tensor) -> Tensor:
        """[b] bool: whether the object is in the gripper.

        Without the observation `is_grasped`, this is assumed after `close_steps`.
        """
        if "is_grasped" in self.inputs:
            return obs["is_grasped"][:, 0] > 0.5
        return steps >= self.close_steps


def _beside(place: Tensor, thing: Tensor) -> Tensor:
    """[b] bool: whether `thing` is above or below `place`."""
    return (place - thing)[:, :2].norm(dim=1) < 0.01


def _with_height(position: Tensor, height: Tensor) -> Tensor:
    return torch.cat([position[:, :2], height[:, None]], 1)
