"""Limits on the joint targets of an arm: joints, step, speed, jump and workspace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from residual_rl.config import SafetyLimitsCfg
from residual_rl.errors import ConfigError
from residual_rl.robots.hardware_units import HardwareUnits
from residual_rl.robots.kinematics import KinematicChain
from residual_rl.types import check_finite

LIMITS = ("joint", "step", "speed", "jump", "workspace")
"""The limits, in the order in which they are applied."""
_SLACK = 1e-9
"""Distance beyond a joint's limit that comes from rounding in the conversion of units [rad]."""
_BISECTIONS = 20


@dataclass(frozen=True)
class Limited:
    """Joint targets within all limits, and which limits made them so."""

    target: Tensor
    """[B, J] in [rad]."""
    changes: dict[str, Tensor]
    """Change of the target by each limit that acted in some env, [B, J] in [rad]."""


class SafetyLimits:
    """Limits joint targets as a function of the last two, without a state of its own.

    A step of zero is always allowed: with the arm beyond a limit, the target may stay or come back, but not
    go further; and slowing down is no jump. So there is always a target within all limits, and a target
    within them is returned as it is.

    Args:
        cfg: the limits.
        hardware: limits of the J joints.
        control_hz: policy steps per second [Hz].
        kinematics: from the base to the tool, for the workspace.

    Raises:
        ConfigError: there is a workspace but no kinematics, or the margin leaves a joint no range.
    """

    def __init__(
        self,
        cfg: SafetyLimitsCfg,
        hardware: HardwareUnits,
        control_hz: float,
        kinematics: KinematicChain | None = None,
    ):
        self.cfg = cfg
        ends = hardware.from_hardware(torch.tensor([hardware.low, hardware.high], dtype=torch.float64))
        self._low = ends.amin(0) + cfg.joint_margin - _SLACK
        self._high = ends.amax(0) - cfg.joint_margin + _SLACK
        if (self._low > self._high).any():
            name = hardware.joint_names[int((self._low > self._high).nonzero()[0])]
            raise ConfigError(f"joint_margin {cfg.joint_margin} leaves the joint {name} no range")
        self._speed_step = cfg.max_speed / control_hz
        self._kinematics = kinematics
        if cfg.workspace is not None:
            if kinematics is None:
                raise ConfigError("workspace needs the kinematics of the arm, which this env does not have")
            names = hardware.joint_names
            self._moves_tool = torch.tensor([name in kinematics.joint_names for name in names])
            self._chain_index = torch.tensor([names.index(name) for name in kinematics.joint_names])
            box = torch.tensor(cfg.workspace, dtype=torch.float64)
            self._box_low, self._box_high = box[0::2], box[1::2]

    def __call__(self, target: Tensor, previous: Tensor, previous_step: Tensor) -> Limited:
        """Limit the joint targets `target` [B, J] in [rad].

        Args:
            target: the wanted targets.
            previous: the targets [B, J] of the step before; in an episode's first step, where the joints are.
            previous_step: their change [B, J] in that step; 0 at first.

        Raises:
            NonFiniteError: a target is NaN or infinite.
        """
        check_finite("the joint target", target)
        # Each limit is an interval around the last target, so that the intersection of all contains it.
        step, jump, speed = self.cfg.max_step, self.cfg.max_jump, self._speed_step
        low, high = self._low.to(target), self._high.to(target)
        intervals = {
            "joint": (low.minimum(previous), high.maximum(previous)),
            "step": (previous - step, previous + step),
            "speed": (previous - speed, previous + speed),
            "jump": (
                previous + (previous_step - jump).clamp(max=0.0),
                previous + (previous_step + jump).clamp(min=0.0),
            ),
        }
        changes = {}
        for name, (lowest, highest) in intervals.items():
            limited = target.maximum(lowest).minimum(highest)
            if not torch.equal(limited, target):
                changes[name] = limited - target
            target = limited
        if self.cfg.workspace is not None:
            limited = self._pulled_back(target, previous)
            if not torch.equal(limited, target):
                changes["workspace"] = limited - target
            target = limited
        return Limited(target, changes)

    def _pulled_back(self, target: Tensor, previous: Tensor) -> Tensor:
        """`target`, or where it leads the tool out of the workspace, a point on the way from `previous`."""
        allowed = self._excess(previous)
        leaves = self._excess(target) > allowed
        if not leaves.any():
            return target
        # Bisect for the share of the way; `inside` is always allowed, as 0 is.
        inside, outside = torch.zeros_like(allowed), torch.ones_like(allowed)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (inside + outside)
            ok = self._excess(self._between(previous, target, middle)) <= allowed
            inside, outside = torch.where(ok, middle, inside), torch.where(ok, outside, middle)
        return torch.where(leaves[:, None], self._between(previous, target, inside), target)

    def _between(self, previous: Tensor, target: Tensor, share: Tensor) -> Tensor:
        """The point [B, J] after a `share` [B] of the way, for the joints that move the tool."""
        share = torch.where(self._moves_tool.to(target.device), share[:, None], 1.0)
        point = previous + share * (target - previous)
        return point.maximum(previous.minimum(target)).minimum(previous.maximum(target))

    def _excess(self, joints: Tensor) -> Tensor:
        """Distance [B] of the tool from the workspace along the worst axis [m]; 0 inside."""
        assert self._kinematics is not None
        chain = self._kinematics.to(joints.device)
        _, tool = chain.forward(joints[:, self._chain_index.to(joints.device)].to(chain.axis.dtype))
        at = tool[:, :3, 3]
        beyond = (self._box_low.to(at) - at).maximum(at - self._box_high.to(at))
        return beyond.amax(1).clamp(min=0.0)
