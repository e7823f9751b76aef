"""Joint values of policy servers: order, units and direction of the gripper."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_rl.robots.hardware_units import HardwareUnits

GRIPPER = "gripper"
"""Name of the gripper's joint, which servers separate from the joints of the arm."""


class ArmJoints:
    """Converts joint positions to and from the values of a policy server: arm, and gripper if there is one.

    Args:
        hardware: names and units of the joints.
        inverted: whether the server's gripper is 0 where the robot's is 100.
        radians: whether the server's unit is [rad] instead of the robot's own units.
    """

    def __init__(self, hardware: HardwareUnits, inverted: bool = False, radians: bool = False):
        self.hardware, self._inverted, self._radians = hardware, inverted, radians
        names = hardware.joint_names
        self.arm = [i for i, name in enumerate(names) if name != GRIPPER]
        self.gripper = [i for i, name in enumerate(names) if name == GRIPPER]
        self._order = torch.tensor([*self.arm, *self.gripper]).argsort()

    def to_server(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Convert joint `angles` [..., J] in [rad] to the server's arm [..., arm] and gripper [..., 1 or 0],
        float64."""
        values = self._turned(self.hardware.to_hardware(angles))
        if self._radians:
            values = self.hardware.from_hardware(values)
        return values[..., self.arm], values[..., self.gripper]

    def from_server(self, arm: Tensor, gripper: Tensor) -> Tensor:
        """The inverse of `to_server`: joint angles [..., J] in [rad], float64."""
        values = torch.cat([arm, gripper], -1)[..., self._order].double()
        if self._radians:
            values = self.hardware.to_hardware(values)
        return self.hardware.from_hardware(self._turned(values))

    def _turned(self, values: Tensor) -> Tensor:
        """`values` in hardware units, with the direction of the gripper inverted if `inverted`."""
        if self._inverted:
            values = values.clone()
            for i in self.gripper:
                values[..., i] = self.hardware.low[i] + self.hardware.high[i] - values[..., i]
        return values
