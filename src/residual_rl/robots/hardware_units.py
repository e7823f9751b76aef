"""Units of a robot's own software, and their conversion to and from joint angles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from residual_rl.errors import ConfigError

IMPLAUSIBLE = 0.5
"""Distance beyond a joint's range at which a reading cannot be right [rad]."""


@dataclass(frozen=True)
class HardwareUnits:
    """A linear map for each joint: `hardware = scale · (angle [rad] - zero [rad])`, within limits.

    Vectors of joints are [..., J], in the order of `joint_names`. Arithmetic is in float64.
    """

    joint_names: tuple[str, ...]
    """J names, e.g. `shoulder_pan`."""
    units: tuple[str, ...]
    """Unit of each joint, e.g. `deg` or `%`."""
    scale: tuple[float, ...]
    """Hardware units per radian."""
    zero: tuple[float, ...]
    """Angle at which the hardware reads 0 [rad]."""
    low: tuple[float, ...]
    """Lower limits, in hardware units."""
    high: tuple[float, ...]
    """Upper limits, in hardware units."""

    def to_hardware(self, angles: Tensor) -> Tensor:
        """Hardware units, float64 [..., J], of joint `angles` [..., J] in [rad]."""
        angles = angles.double()
        return (angles - angles.new_tensor(self.zero)) * angles.new_tensor(self.scale)

    def from_hardware(self, values: Tensor) -> Tensor:
        """Joint angles [rad], float64 [..., J], of `values` [..., J] in hardware units."""
        values = values.double()
        return values / values.new_tensor(self.scale) + values.new_tensor(self.zero)

    def clip(self, values: Tensor) -> Tensor:
        """`values` [..., J] in hardware units, cut to the limits."""
        values = values.double()
        return values.maximum(values.new_tensor(self.low)).minimum(values.new_tensor(self.high))

    def beyond_range(self, angles: Tensor) -> Tensor:
        """Distance of joint `angles` [..., J] from their range [rad], float64; 0 within it."""
        ends = self.from_hardware(torch.tensor([self.low, self.high], dtype=torch.float64)).to(angles.device)
        angles = angles.double()
        return (ends.amin(0) - angles).maximum(angles - ends.amax(0)).clamp(min=0.0)

    def is_plausible(self, angles: Tensor) -> bool:
        """Whether joint `angles` [J] are finite and at most 0.5 rad beyond their range, as an arm may measure
        them."""
        return bool(torch.isfinite(angles).all() and (self.beyond_range(angles) <= IMPLAUSIBLE).all())

    def check(self, values: Tensor, where: str, slack: float = 1.0) -> None:
        """Raise `ConfigError` with the joint, the row and the limits if `values` [N, J] in hardware units
        exceed the limits by more than `slack`. `where` describes the rows in the message."""
        outside = (values.double() - self.clip(values)).abs() > slack
        if not outside.any():
            return
        row, joint = (int(i) for i in outside.nonzero()[0])
        name, unit, low, high = self.joint_names[joint], self.units[joint], self.low[joint], self.high[joint]
        raise ConfigError(
            f"{where}: joint {name} is at {float(values[row, joint]):.1f} {unit} in row {row}, outside of"
            f" {low:.1f} to {high:.1f} {unit} ({int(outside.any(1).sum())} of {len(values)} rows have a joint"
            " out of range)"
        )


def joint_index(hardware: HardwareUnits, names: list[str]) -> Tensor:
    """Index of each joint of `hardware` in `names` [J] int64; names may end in `.pos`.

    Raises `ConfigError` if a joint is missing.
    """
    bare = [name.removesuffix(".pos") for name in names]
    missing = [name for name in hardware.joint_names if name not in bare]
    if missing:
        raise ConfigError(f"joint(s) {', '.join(missing)} missing; there are {', '.join(names)}")
    return torch.tensor([bare.index(name) for name in hardware.joint_names])
