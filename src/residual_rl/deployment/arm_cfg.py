"""Settings of the control loop of an arm, and of what stops it. This module does not import torch, so that
the command line's help stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from residual_rl.utils.validation import CheckedCfg, PositiveFloat, PositiveInt

MAX_POSE_AGE = 0.5
"""Default age of the last seen pose of the task's object at which an arm is stopped [s]."""


@dataclass(frozen=True)
class GuardCfg(CheckedCfg):
    """When an arm is stopped, and how."""

    at_exit: Literal["hold", "torque-off"] = "hold"
    """What stops the arm, at the end and after every failure: hold it where it is, or turn the torque off, so
    that it may fall."""
    max_latency: PositiveFloat = 0.12
    """Longest time from a reading to its command [s]; a policy that takes longer is stopped."""
    stale_after: PositiveFloat = 0.3
    """Age of the newest reading at which the arm is stopped [s]."""
    frozen_after: PositiveFloat = 1.0
    """Time after which the arm is stopped if the joint positions have not changed at all although the targets
    are elsewhere, or an image has not although the arm has moved [s]."""


@dataclass(frozen=True)
class LoopCfg(CheckedCfg):
    """How long a policy runs on an arm, and where its episodes start."""

    episodes: PositiveInt = 1
    """Number of episodes; each ends with success or after the task's steps."""
    seconds: PositiveFloat | None = None
    """Time after which the arm is stopped [s], at its rate. None: after the last episode."""
    move_to_start: bool = True
    """Move slowly to the task's start pose before each episode; otherwise an episode starts where the arm
    is."""
    start_speed: PositiveFloat = 0.5
    """Speed of the fastest joint on the way there [rad/s]."""
