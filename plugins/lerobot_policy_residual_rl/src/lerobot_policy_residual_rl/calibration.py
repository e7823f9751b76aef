"""The part of LeRobot's interface of devices that is about calibration, for simulated ones."""

from __future__ import annotations


class NeedsNoCalibration:
    """A device that is always calibrated; it goes before LeRobot's base class."""

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        pass

    def configure(self) -> None:
        pass
