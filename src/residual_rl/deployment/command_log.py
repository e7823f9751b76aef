"""What was commanded, and every limit that acted with what it changed."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from residual_rl.deployment.guarded_arm import Limitation
from residual_rl.robots.arm_driver import ArmReading
from residual_rl.robots.hardware_units import HardwareUnits
from residual_rl.utils.files import writing

_log = logging.getLogger(__name__)
COLUMNS = ("time", "limit", "joint", "unit", "measured", "wanted", "sent", "changed_by")


class CommandLog:
    """Collects the commands of a `GuardedArm`, in the robot's own units.

    Each limit that acted on a joint is a row of the CSV `file`; the first of each kind is logged as a warning
    too.

    Args:
        file: path of the CSV.
        hardware: names and units of the joints.
    """

    def __init__(self, file: Path, hardware: HardwareUnits):
        self.file = file
        self.hardware = hardware
        self.num_commands = 0
        self.acted: dict[str, dict[str, dict[str, float]]] = {}
        """By limit and joint: `count`, and the `largest` change."""
        self._last: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._ends: NDArray[np.float64] | None = None
        with writing(file):
            self._opened: TextIO = file.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._opened)
        self._writer.writerow(COLUMNS)

    def __enter__(self) -> CommandLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.close()

    def __call__(self, reading: ArmReading, limited: Limitation) -> None:
        """Add a command; see `GuardedArm.on_command`."""
        measured, wanted, sent = (
            self._values(angles) for angles in (reading.joint_position, limited.wanted, limited.sent)
        )
        self.num_commands += 1
        self._last = measured, sent
        ends = np.stack([sent, sent]) if self._ends is None else self._ends
        self._ends = np.stack([np.minimum(ends[0], sent), np.maximum(ends[1], sent)])
        for limit, change in limited.changes.items():
            by = self._values(limited.sent + change) - sent
            for joint in np.flatnonzero(change):
                self._add(limit, int(joint), limited.time, measured, wanted, sent, float(by[joint]))

    def _add(
        self,
        limit: str,
        joint: int,
        time: float,
        measured: NDArray[np.float64],
        wanted: NDArray[np.float64],
        sent: NDArray[np.float64],
        by: float,
    ) -> None:
        name, unit = self.hardware.joint_names[joint], self.hardware.units[joint]
        values = [f"{value[joint]:.4f}" for value in (measured, wanted, sent)]
        self._writer.writerow([f"{time:.4f}", limit, name, unit, *values, f"{by:.4f}"])
        if limit not in self.acted:
            _log.warning(
                "limit %s: %s was to go to %.2f %s and goes to %.2f %s; all of these are in %s",
                *(limit, name, wanted[joint], unit, sent[joint], unit, self.file),
            )
        seen = self.acted.setdefault(limit, {}).setdefault(name, {"count": 0, "largest": 0.0})
        seen["count"] += 1
        seen["largest"] = max(seen["largest"], abs(by))

    def _values(self, angles: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self.hardware.to_hardware(torch.from_numpy(angles)).numpy())

    def joints_table(self, dry_run: bool) -> Table:
        """For each joint, where it was, and what was sent, or in a dry run would have been."""
        sent = "would be sent" if dry_run else "sent"
        table = Table("joint", "unit", "measured", sent, "lowest", "highest", title_justify="left")
        table.title = f"Last of {self.num_commands} commands, and the range of all"
        if self._last is None or self._ends is None:
            return table
        for i, (name, unit) in enumerate(zip(self.hardware.joint_names, self.hardware.units, strict=True)):
            numbers = (self._last[0][i], self._last[1][i], *self._ends[:, i])
            table.add_row(name, unit, *(f"{number:.1f}" for number in numbers))
        return table

    def limits_table(self) -> Table:
        """The limits that acted, by joint."""
        table = Table("limit", "joint", "commands", "largest change", title="Limits that acted")
        table.title_justify = "left"
        units = dict(zip(self.hardware.joint_names, self.hardware.units, strict=True))
        for limit, joints in self.acted.items():
            for name, seen in joints.items():
                table.add_row(limit, name, f"{seen['count']:.0f}", f"{seen['largest']:.2f} {units[name]}")
        return table

    def to_json(self) -> dict[str, Any]:
        """Numbers of commands and of those that limits changed, by limit and joint."""
        return {"commands": self.num_commands, "limits": self.acted}
