"""The base policies `jacobian` and `jacobian-yaw`: settings and registration."""

from __future__ import annotations

from dataclasses import dataclass

from residual_rl.errors import ConfigError
from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.validation import check_fields


@dataclass(frozen=True)
class JacobianCfg:
    """Settings of the `jacobian` base policy."""

    approach_height: float = 0.03
    """Height above the sheet during the approach [m]."""
    descend_distance: float = 0.012
    """Horizontal distance to the sheet's centre at which the finger descends [m]."""
    press_height: float = -0.006
    """Commanded height while pressing [m]; below the table, so that the servos press."""
    drag_gain: float = 0.5
    """Share of the distance to the goal commanded in each step."""
    max_drag_step: float = 0.004
    """Longest step while dragging [m]."""
    max_approach_step: float = 0.015
    """Longest step while approaching and descending [m]."""
    pitch_near: tuple[float, float] = (0.18, 88.0)
    """A distance from the pan axis [m], and the finger's pitch below the horizontal at it [deg]."""
    pitch_far: tuple[float, float] = (0.32, 55.0)
    """The same at a larger distance; the pitch is interpolated linearly."""
    damping: float = 0.02
    """Damping of the damped least squares."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in (
            "approach_height",
            "descend_distance",
            "drag_gain",
            "max_drag_step",
            "max_approach_step",
        ):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.drag_gain > 1:
            raise ConfigError(f"drag_gain must be at most 1, not {self.drag_gain}")
        if self.press_height >= 0:
            raise ConfigError(
                f"press_height must be below 0, the height of the table, not {self.press_height}"
            )
        if not 0 <= self.pitch_near[0] < self.pitch_far[0]:
            raise ConfigError(
                "pitch_near must be at a shorter distance than pitch_far, "
                f"not {self.pitch_near[0]} and {self.pitch_far[0]}"
            )
        for name in ("pitch_near", "pitch_far"):
            if not 0 <= getattr(self, name)[1] <= 90:
                raise ConfigError(
                    f"{name} must have a pitch from 0 to 90 degrees, not {getattr(self, name)[1]}"
                )
        if self.damping < 0:
            raise ConfigError(f"damping must be 0 or more, not {self.damping}")


@dataclass(frozen=True)
class JacobianYawCfg(JacobianCfg):
    """Settings of the `jacobian-yaw` base policy."""

    yaw_gain: float = 0.1
    """Share of the yaw error by which the finger turns in each step while dragging."""
    stir_radius: float = 0.01
    """Radius of the circles around the goal while the yaw error is large [m]."""
    stir_yaw_error: float = 0.1
    """Yaw error below which the circles shrink in proportion to it [rad]."""
    stir_period: int = 15
    """Number of steps of a circle."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("yaw_gain", "stir_radius"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.stir_yaw_error <= 0:
            raise ConfigError(f"stir_yaw_error must be above 0, not {self.stir_yaw_error}")
        if self.stir_period < 1:
            raise ConfigError(f"stir_period must be at least 1, not {self.stir_period}")


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
        summary="jacobian with yaw control by the wrist; solves so101-paper, for sanity checks and demonstrations",
        make="residual_rl.base_policies.sheet_dragging:make_jacobian_yaw",
        config=f"{__name__}:JacobianYawCfg",
    )
)
