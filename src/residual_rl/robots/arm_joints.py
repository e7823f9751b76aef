"""The joints of an arm as a policy server knows them: order, units and the gripper's polarity."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_rl.robots.hardware_units import HardwareUnits

GRIPPER = "gripper"
"""What a robot's software calls the joint that is told apart from the arm's."""


class ArmJoints:
    """The joints of a robot as its servers know them: the arm's, and the gripper's if it has one.

    Args:
        hardware: names and units of the joints.
        inverted: whether the server's gripper is 0 where the robot's is 100.
        radians: whether the server measures in [rad], not in the robot's own units.
    """

    def __init__(self, hardware: HardwareUnits, inverted: bool = False, radians: bool = False):
        self.hardware, self._inverted, self._radians = hardware, inverted, radians
        names = hardware.joint_names
        self.arm = [i for i, name in enumerate(names) if name != GRIPPER]
        self.gripper = [i for i, name in enumerate(names) if name == GRIPPER]
        self._order = torch.tensor([*self.arm, *self.gripper]).argsort()

    def to_server(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """The arm [..., arm] and the gripper [..., 1 or 0] in the server's units, float64, of joint `angles`
        [..., J] in [rad]."""
        values = self._turned(self.hardware.to_hardware(angles))
        if self._radians:
            values = self.hardware.from_hardware(values)
        return values[..., self.arm], values[..., self.gripper]

    def from_server(self, arm: Tensor, gripper: Tensor) -> Tensor:
        """Joint angles [..., J] in [rad], float64: the way back."""
        values = torch.cat([arm, gripper], -1)[..., self._order].double()
        if self._radians:
            values = self.hardware.to_hardware(values)
        return self.hardware.from_hardware(self._turned(values))

    def _turned(self, values: Tensor) -> Tensor:
        """Hardware units with the gripper's polarity turned around."""
        if self._inverted:
            values = values.clone()
            for i in self.gripper:
                values[..., i] = self.hardware.low[i] + self.hardware.high[i] - values[..., i]
        return values
