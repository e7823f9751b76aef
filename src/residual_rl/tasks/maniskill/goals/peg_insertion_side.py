"""PegInsertionSide-v1: pick up a peg at its tail and insert its head into the hole of a box from the side."""

import math

import torch
from torch import Tensor

from residual_rl.robots.cartesian_goals import (
    CartesianGoals,
    GoalsSpec,
    ToolGoal,
    funnel,
    register_goals,
    tool_yaw,
    yaw_of,
)
from residual_rl.robots.kinematics import matrix_from_quaternion
from residual_rl.types import Obs

REACH, GRASP, ALIGN, INSERT = range(4)
_HOVER = 0.08
"""Height from which the peg is approached [m]."""
_CLOSE_STEPS = 5
"""Number of steps for closing the gripper."""
_GAP = 0.02
"""Distance between the peg's head and the box while the peg is aligned [m]."""
_MAX_OFFSET_TO_INSERT = 0.002
"""Distance of the head from the hole's axis below which it is inserted [m]."""
_MAX_OFFSET_WHILE_INSERTING = 0.008
"""Distance of the head from the hole's axis above which it is aligned again [m]."""
_MAX_YAW_ERROR = 0.03
"""Largest yaw error of the peg for inserting it [rad]."""
_ADVANCE = 0.015
"""Distance of the goal ahead of the head during insertion [m]."""
_DEPTH = 0.03
"""Distance behind the centre of the box to which the head is pushed [m]."""
_MAX_YAW_STEP = 0.6
"""Largest yaw change of a goal [rad]; below π/4, so that the nearest quarter turn is unambiguous."""


class PegInsertionSideGoals(CartesianGoals):
    """Reach and grasp the tail, align the peg with the axis of the hole in front of the box, and push it in.

    If the head leaves the axis, the peg is aligned again.
    """

    inputs = {"peg_pose": (7,), "peg_half_size": (3,), "box_hole_pose": (7,)}  # noqa: RUF012
    phases = ("reach", "grasp", "align", "insert")

    def advance(self, obs: Obs, phase: Tensor, steps: Tensor) -> Tensor:
        distance = (self._tail(obs) - obs["tcp_pose"][:, :3]).norm(dim=1)
        grasp_yaw_error = self._grasp_yaw_error(obs).abs()
        along, offset, yaw_error = self._head(obs)
        offset = offset.norm(dim=1)
        is_outside = along < -obs["peg_half_size"][:, 0] - 0.3 * _GAP
        aligned = (offset < _MAX_OFFSET_TO_INSERT) & (yaw_error.abs() < _MAX_YAW_ERROR) & is_outside
        astray = (offset > _MAX_OFFSET_WHILE_INSERTING) & is_outside
        new = torch.where((phase == REACH) & (distance < 0.01) & (grasp_yaw_error < 0.1), GRASP, phase)
        new = torch.where((phase == GRASP) & (steps >= _CLOSE_STEPS), ALIGN, new)
        new = torch.where((phase == ALIGN) & aligned, INSERT, new)
        new = torch.where((phase == INSERT) & astray, ALIGN, new)
        return torch.where(((phase == ALIGN) | (phase == INSERT)) & (distance > 0.04), REACH, new)

    def goal(self, obs: Obs, phase: Tensor, steps: Tensor) -> ToolGoal:  # noqa: ARG002
        tool, tail = obs["tcp_pose"][:, :3], self._tail(obs)
        axis = _axis(obs["box_hole_pose"])
        along, offset, yaw_error = self._head(obs)
        wanted = torch.where(
            phase == INSERT, (along + _ADVANCE).clamp(max=_DEPTH), -obs["peg_half_size"][:, 0] - _GAP
        )
        # The tool moves the head along and onto the axis. It also compensates for its own rotation, which
        # moves the head relative to the tool.
        lever = self._head_position(obs) - tool
        cos, sin = yaw_error.cos(), yaw_error.sin()
        turned_lever = torch.stack(
            [cos * lever[:, 0] - sin * lever[:, 1], sin * lever[:, 0] + cos * lever[:, 1], lever[:, 2]], 1
        )
        carried = tool + (wanted - along)[:, None] * axis - offset + lever - turned_lever
        held = phase >= ALIGN
        grasp_yaw_error = self._grasp_yaw_error(obs)
        yaw_step = torch.where(held, yaw_error, grasp_yaw_error).clamp(-_MAX_YAW_STEP, _MAX_YAW_STEP)
        yaw = tool_yaw(obs["tcp_pose"]) + yaw_step
        # stay above the peg until the fingers are across it
        above = funnel(tail, tool, _HOVER)
        above[:, 2] = torch.where(grasp_yaw_error.abs() > 0.15, tail[:, 2] + _HOVER, above[:, 2])
        position = torch.where((phase == REACH)[:, None], above, torch.where(held[:, None], carried, tail))
        return ToolGoal(position, phase == REACH, yaw)

    def _grasp_yaw_error(self, obs: Obs) -> Tensor:
        """Yaw [b] by which the tool must turn to grasp across the peg, modulo half a turn [rad]."""
        yaw = yaw_of(obs["peg_pose"]) + 0.5 * math.pi - tool_yaw(obs["tcp_pose"])
        return yaw - math.pi * (yaw / math.pi).round()

    def _tail(self, obs: Obs) -> Tensor:
        """Grasp position [b, 3]: off the centre of the peg, away from the head."""
        back = (0.5 * obs["peg_half_size"][:, :1] + 0.01).clamp(min=0.05)
        return obs["peg_pose"][:, :3] - back * _axis(obs["peg_pose"])

    def _head_position(self, obs: Obs) -> Tensor:
        return obs["peg_pose"][:, :3] + obs["peg_half_size"][:, :1] * _axis(obs["peg_pose"])

    def _head(self, obs: Obs) -> tuple[Tensor, Tensor, Tensor]:
        """The head's coordinate along the hole's axis from the centre of the box [b] [m], its offset from the
        axis [b, 3] [m], and the yaw by which the peg must turn to be parallel to the axis [b] [rad]."""
        axis = _axis(obs["box_hole_pose"])
        from_box = self._head_position(obs) - obs["box_hole_pose"][:, :3]
        along = (from_box * axis).sum(1)
        yaw = yaw_of(obs["box_hole_pose"]) - yaw_of(obs["peg_pose"])
        return along, from_box - along[:, None] * axis, torch.atan2(yaw.sin(), yaw.cos())


def _axis(pose: Tensor) -> Tensor:
    """The x axis [b, 3] of `pose` [b, 7]."""
    return matrix_from_quaternion(pose[:, 3:])[..., 0]


register_goals(GoalsSpec("PegInsertionSide-v1", f"{__name__}:PegInsertionSideGoals"))
