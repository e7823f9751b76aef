"""A script that solves PickBox-v1, for its sanity suite."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_rl.envs.maniskill.arm_description import GRIPPER_OPENS
from residual_rl.tasks.maniskill.pick_box.layouts import LAYOUTS
from residual_rl.types import Obs

CONTROL_MODE = "pd_ee_delta_pos"
"""Of the envs that it acts in."""
_HOVER = 0.08
"""Height over the box from which the gripper goes down [m]."""
_ALIGNED, _AWAY, _NEAR = 0.005, 0.025, 0.006
"""How far the tool may be beside the box when it goes all the way down, from where on it stays up, and how
far from where it grasps it may be when it closes [m]."""
_STEP = 0.05
"""Longest move that is commanded each step [m]."""


class PickBoxOracle:
    """Hover over the box, go down, close, lift, move over the basket, open.

    It has no memory: the next step follows from the observation. Positions are in the world frame,
    whose axes the robots' bases share.

    Args:
        robot: ManiSkill's name of it.
        action_unit: [A], what an action of 1 means with `CONTROL_MODE` [m].
    """

    def __init__(self, robot: str, action_unit: Tensor):
        self._layout, self._step, self._opens = LAYOUTS[robot], action_unit[:3], GRIPPER_OPENS[robot]

    def __call__(self, obs: Obs, step: int = 0) -> Tensor:  # noqa: ARG002
        """Actions [B, 4] for the observation."""
        tool, box, goal = obs["tcp_pose"][:, :3], obs["obj_pose"][:, :3], obs["goal_pos"]
        held = obs["is_grasped"][:, 0] > 0.5
        over = (goal - box)[:, :2].norm(dim=1) < 0.5 * self._layout.goal_thresh

        # fetch: hover over the box, lower as the tool gets above it
        grasp = box.clone()
        grasp[:, 2] = grasp[:, 2].clamp(min=self._layout.lowest_tool)
        beside = (grasp - tool)[:, :2].norm(dim=1)
        at_box = (grasp - tool).norm(dim=1) < _NEAR
        fetch = _raised(grasp, _HOVER * ((beside - _ALIGNED) / (_AWAY - _ALIGNED)).clamp(0.0, 1.0))

        lift = self._layout.rim_height + self._layout.carry_clearance + obs["obj_half_size"][:, 0] - box[:, 2]
        to_carry = goal - box
        # It first rises, then moves sideways, at a rate that lets it rise with what it still has to.
        sideways = to_carry[:, :2] * (lift < 0.01)[:, None]
        carry = tool + torch.cat([sideways, lift[:, None]], 1)

        # choose the target, limit the move, and command the gripper
        target = torch.where(held[:, None], carry, fetch)
        target = torch.where((over & ~held)[:, None], _raised(tool, torch.full_like(lift, _HOVER)), target)
        move = target - tool
        move = move * (_STEP / move.norm(dim=1, keepdim=True).clamp(min=1e-6)).clamp(max=1.0)
        closes = (held | at_box) & ~over
        gripper = torch.where(closes, -self._opens, self._opens)
        return torch.cat([move / self._step, gripper[:, None]], 1).clamp(-1.0, 1.0)


def _raised(position: Tensor, by: Tensor) -> Tensor:
    """`position` [B, 3] higher `by` [B] [m]."""
    return torch.cat([position[:, :2], position[:, 2:] + by[:, None]], 1)
