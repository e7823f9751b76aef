"""A scripted policy that solves PickBox-v1, for its sanity suite."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_rl.envs.maniskill.arm_description import GRIPPER_OPENS
from residual_rl.tasks.maniskill.pick_box.layouts import LAYOUTS
from residual_rl.types import Obs

CONTROL_MODE = "pd_ee_delta_pos"
"""Control mode of the oracle's actions."""
_HOVER = 0.08
"""Height above the box from which the gripper is lowered [m]."""
_ALIGNED = 0.005
"""Horizontal distance to the box below which the tool is lowered to the grasp height [m]."""
_AWAY = 0.025
"""Horizontal distance to the box above which the tool keeps its full hover height [m]."""
_NEAR = 0.006
"""Distance between tool and grasp position at which the gripper closes [m]."""
_STEP = 0.05
"""Longest commanded motion per step [m]."""


class PickBoxOracle:
    """Hover above the box, lower the gripper, grasp, lift, move over the basket, and release.

    It has no state: the action is a function of the observation. Positions are in the world frame, which is
    parallel to the frames of the robots' bases.

    Args:
        robot: ManiSkill's robot uid.
        action_unit: [A] the physical value of an action of 1 in `CONTROL_MODE` [m].
    """

    def __init__(self, robot: str, action_unit: Tensor):
        self._layout, self._step, self._opens = LAYOUTS[robot], action_unit[:3], GRIPPER_OPENS[robot]

    def __call__(self, obs: Obs, step: int = 0) -> Tensor:  # noqa: ARG002
        """Actions [B, 4] for the observation."""
        tool, box, goal = obs["tcp_pose"][:, :3], obs["obj_pose"][:, :3], obs["goal_pos"]
        held = obs["is_grasped"][:, 0] > 0.5
        over = (goal - box)[:, :2].norm(dim=1) < 0.5 * self._layout.goal_thresh

        # fetch: hover above the box, and lower the tool as it gets closer
        grasp = box.clone()
        grasp[:, 2] = grasp[:, 2].clamp(min=self._layout.lowest_tool)
        beside = (grasp - tool)[:, :2].norm(dim=1)
        at_box = (grasp - tool).norm(dim=1) < _NEAR
        fetch = _raised(grasp, _HOVER * ((beside - _ALIGNED) / (_AWAY - _ALIGNED)).clamp(0.0, 1.0))

        # carry: rise first, then move sideways while correcting the height
        lift = self._layout.rim_height + self._layout.carry_clearance + obs["obj_half_size"][:, 0] - box[:, 2]
        to_carry = goal - box
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
    """`position` [B, 3] raised `by` [B] [m]."""
    return torch.cat([position[:, :2], position[:, 2:] + by[:, None]], 1)
