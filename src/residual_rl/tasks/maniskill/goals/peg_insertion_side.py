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
"""Steps that the gripper is given to close."""
_GAP = 0.02
"""From the peg's head to the box, where the two are aligned [m]."""
_ALIGNED, _ASTRAY = 0.002, 0.008
"""Distances of the head from the hole's axis: below one it goes in, above the other it is aligned anew
[m]."""
_STRAIGHT = 0.03
"""The same of the peg's direction [rad]."""
_ADVANCE = 0.015
"""How far ahead of the head the goal is, going in [m]."""
_DEPTH = 0.03
"""How far behind the middle of the box the head is pushed [m]."""
_TURN = 0.6
"""The largest turn about the vertical that is wanted at once: less than what the nearest quarter turn would
be mistaken for [rad]."""


class PegInsertionSideGoals(CartesianGoals):
    """Reach and grasp the tail, carry the peg before the hole, turn it along the hole's axis, push it in;
    align anew where it strays."""

    inputs = {"peg_pose": (7,), "peg_half_size": (3,), "box_hole_pose": (7,)}  # noqa: RUF012
    phases = ("reach", "grasp", "align", "insert")

    def advance(self, obs: Obs, phase: Tensor, steps: Tensor) -> Tensor:
        off = (self._tail(obs) - obs["tcp_pose"][:, :3]).norm(dim=1)
        across = self._across(obs).abs()
        along, beside, turned = self._head(obs)
        beside = beside.norm(dim=1)
        before = along < -obs["peg_half_size"][:, 0] - 0.3 * _GAP
        aligned = (beside < _ALIGNED) & (turned.abs() < _STRAIGHT) & before
        astray = (beside > _ASTRAY) & before
        new = torch.where((phase == REACH) & (off < 0.01) & (across < 0.1), GRASP, phase)
        new = torch.where((phase == GRASP) & (steps >= _CLOSE_STEPS), ALIGN, new)
        new = torch.where((phase == ALIGN) & aligned, INSERT, new)
        new = torch.where((phase == INSERT) & astray, ALIGN, new)
        return torch.where(((phase == ALIGN) | (phase == INSERT)) & (off > 0.04), REACH, new)

    def goal(self, obs: Obs, phase: Tensor, steps: Tensor) -> ToolGoal:  # noqa: ARG002
        tool, tail = obs["tcp_pose"][:, :3], self._tail(obs)
        axis = _axis(obs["box_hole_pose"])
        along, beside, turned = self._head(obs)
        wanted = torch.where(
            phase == INSERT, (along + _ADVANCE).clamp(max=_DEPTH), -obs["peg_half_size"][:, 0] - _GAP
        )
        # the head is moved as is wanted, and the tool, which turns the peg about its own place, makes up for
        # what the turn does to the head
        arm = self._head_position(obs) - tool
        cos, sin = turned.cos(), turned.sin()
        swung = torch.stack(
            [cos * arm[:, 0] - sin * arm[:, 1], sin * arm[:, 0] + cos * arm[:, 1], arm[:, 2]], 1
        )
        carried = tool + (wanted - along)[:, None] * axis - beside + arm - swung
        held = phase >= ALIGN
        across = self._across(obs)
        yaw = tool_yaw(obs["tcp_pose"]) + torch.where(held, turned, across).clamp(-_TURN, _TURN)
        above = funnel(tail, tool, _HOVER)
        above[:, 2] = torch.where(across.abs() > 0.15, tail[:, 2] + _HOVER, above[:, 2])
        position = torch.where((phase == REACH)[:, None], above, torch.where(held[:, None], carried, tail))
        return ToolGoal(position, phase == REACH, yaw)

    def _across(self, obs: Obs) -> Tensor:
        """The turn about the vertical [b] after which the fingers close across the peg: half turns are alike,
        quarter turns are not."""
        turn = yaw_of(obs["peg_pose"]) + 0.5 * math.pi - tool_yaw(obs["tcp_pose"])
        return turn - math.pi * (turn / math.pi).round()

    def _tail(self, obs: Obs) -> Tensor:
        """Where the fingers take the peg [b, 3]: off its middle, away from the head."""
        back = (0.5 * obs["peg_half_size"][:, :1] + 0.01).clamp(min=0.05)
        return obs["peg_pose"][:, :3] - back * _axis(obs["peg_pose"])

    def _head_position(self, obs: Obs) -> Tensor:
        return obs["peg_pose"][:, :3] + obs["peg_half_size"][:, :1] * _axis(obs["peg_pose"])

    def _head(self, obs: Obs) -> tuple[Tensor, Tensor, Tensor]:
        """The head's place along the hole's axis from the box's middle [b], its way from that axis [b, 3],
        and the turn about the vertical that the peg lacks to lie along it [b]."""
        axis = _axis(obs["box_hole_pose"])
        way = self._head_position(obs) - obs["box_hole_pose"][:, :3]
        along = (way * axis).sum(1)
        turned = yaw_of(obs["box_hole_pose"]) - yaw_of(obs["peg_pose"])
        return along, way - along[:, None] * axis, torch.atan2(turned.sin(), turned.cos())


def _axis(pose: Tensor) -> Tensor:
    """The x axis [b, 3] of `pose` [b, 7]."""
    return matrix_from_quaternion(pose[:, 3:])[..., 0]


register_goals(GoalsSpec("PegInsertionSide-v1", f"{__name__}:PegInsertionSideGoals"))
