"""What a control loop needs of an arm: readings, joint targets, a safe stop, and a clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from residual_rl.robots.hardware_units import HardwareUnits


@dataclass(frozen=True)
class ArmReading:
    """What an arm measured at one instant."""

    joint_position: NDArray[np.float64]
    """[J] in [rad], in the order of the driver's `hardware.joint_names`."""
    time: float
    """When it was measured, on the driver's clock [s]."""
    images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    """Images [H, W, 3] uint8 by camera."""


class ArmDriver(Protocol):
    """A connection to one arm with J joints, real or simulated.

    The clock is that of the arm: wall time for hardware and for a simulation in real time, simulated time for
    one that runs as fast as possible. So the same loop serves all of them. Methods may be called from
    different threads, one at a time.
    """

    hardware: HardwareUnits
    """Names, units and limits of the joints."""

    def connect(self) -> None:
        """Open the connection. Nothing moves. Raises `ArmError` if there is no arm."""
        ...

    def read(self) -> ArmReading:
        """The current measurement.

        Raises:
            ArmError: the connection is lost, or the answer is late or malformed.
        """
        ...

    def command(self, joint_target: NDArray[np.float64]) -> NDArray[np.float64]:
        """Send joint targets [J] in [rad]; returns those that were sent, which the driver may have limited.

        Raises `ArmError` if the connection is lost.
        """
        ...

    def hold(self) -> None:
        """Command the joints to stay where they are, with torque on. Raises `ArmError` if that fails."""
        ...

    def torque_off(self) -> None:
        """Turn the torque off; the arm may fall. Raises `ArmError` if that fails."""
        ...

    def disconnect(self) -> None:
        """Close the connection and leave the torque as it is. May be called more than once."""
        ...

    def now(self) -> float:
        """The time on the driver's clock [s], which never goes back."""
        ...

    def wait_until(self, time: float) -> None:
        """Return at `time` [s] on the driver's clock, or at once if it has passed."""
        ...


@dataclass(frozen=True)
class Pose:
    """Pose of an object in the frame of the robot's base."""

    position: NDArray[np.float64]
    """[3] in [m]."""
    quaternion: NDArray[np.float64]
    """[4], a unit quaternion (w, x, y, z)."""
    time: float
    """When it was seen [s], on the clock of the driver (`time.monotonic()` for hardware)."""


PoseSource = Callable[[], Pose | None]
"""Returns the pose of the task's object now; None if it is not seen."""
