"""LeRobot's joint names and units for the SO-101.

The unit of the arm's joints is degrees; the gripper ranges from 0 (closed) to 100 (open).

In the robot's "new calibration" as in the model, the zero of an arm joint is the middle of its range, and the
signs of the joints agree, so there are no offsets.
"""

from __future__ import annotations

import math

from residual_rl.robots.hardware_units import HardwareUnits
from residual_rl.tasks.so101_paper.robot import LINKS

_RANGES = {link.joint: link.range for link in LINKS if link.joint}
_CLOSED, _OPEN = _RANGES["gripper"]
_ARM = [_RANGES[name] for name in _RANGES if name != "gripper"]

HARDWARE = HardwareUnits(
    joint_names=tuple(_RANGES),
    units=(*["deg"] * len(_ARM), "%"),
    scale=(*[180.0 / math.pi] * len(_ARM), 100.0 / (_OPEN - _CLOSED)),
    zero=(*[0.0] * len(_ARM), _CLOSED),
    low=(*[math.degrees(low) for low, _ in _ARM], 0.0),
    high=(*[math.degrees(high) for _, high in _ARM], 100.0),
)
"""The mapping for the six joints, from the base to the gripper."""
