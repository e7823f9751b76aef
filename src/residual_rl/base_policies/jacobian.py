"""The base policies `jacobian` and `jacobian-yaw`: settings and registration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval, Lt

from residual_rl.errors import ConfigError
from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.validation import CheckedCfg, NonNegativeFloat, PositiveFloat, PositiveInt, Share

Pitch = Annotated[float, Interval(ge=0.0, le=90.0)]
"""Pitch of the finger below the horizontal [deg]."""


@dataclass(frozen=True)
class JacobianCfg(CheckedCfg):
    """Settings of the `jacobian` base policy."""

    approach_height: PositiveFloat = 0.03
    """Height above the sheet during the approach [m]."""
    descend_distance: PositiveFloat = 0.012
    """Horizontal distance to the sheet's centre at which the finger descends [m]."""
    press_height: Annotated[float, Lt(0.0)] = -0.006
    """Commanded height while pressing [m]; below the table, so that the servos press."""
    drag_gain: Share = 0.5
    """Share of the distance to the goal commanded in each step."""
    max_drag_step: PositiveFloat = 0.004
    """Longest step while dragging [m]."""
    max_approach_step: PositiveFloat = 0.015
    """Longest step while approaching and descending [m]."""
    pitch_near: tuple[NonNegativeFloat, Pitch] = (0.18, 88.0)
    """A distance from the pan axis [m], and the finger's pitch below the horizontal at it [deg]."""
    pitch_far: tuple[NonNegativeFloat, Pitch] = (0.32, 55.0)
    """The same at a larger distance; the pitch is interpolated linearly."""
    damping: NonNegativeFloat = 0.02
    """Damping of the damped least squares."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pitch_near[0] >= self.pitch_far[0]:
            raise ConfigError(
                f"pitch_near must be at a shorter distance than pitch_far, not {self.pitch_near[0]} and "
                f"{self.pitch_far[0]}"
            )


@dataclass(frozen=True)
class JacobianYawCfg(JacobianCfg):
    """Settings of the `jacobian-yaw` base policy."""

    yaw_gain: NonNegativeFloat = 0.1
    """Share of the yaw error by which the finger turns in each step while dragging."""
    stir_radius: NonNegativeFloat = 0.01
    """Radius of the circles around the goal while the yaw error is large [m]."""
    stir_yaw_error: PositiveFloat = 0.1
    """Yaw error below which the circles shrink in proportion to it [rad]."""
    stir_period: PositiveInt = 15
    """Number of steps of a circle."""


register_base_policy(
    BasePolicySpec(
        id="jacobian",
        summary="damped least squares IK that presses the sheet and drags it to the goal; ignores yaw",
        make="residual_rl.base_policies.sheet_dragging:make_jacobian",
        config=f"{__name__}:JacobianCfg",
    )
)
register_base_policy(
    BasePolicySpec(
        id="jacobian-yaw",
        summary=(
            "jacobian with yaw control by the wrist; solves so101-paper, for sanity checks and demonstrations"
        ),
        make="residual_rl.base_policies.sheet_dragging:make_jacobian_yaw",
        config=f"{__name__}:JacobianYawCfg",
    )
)
