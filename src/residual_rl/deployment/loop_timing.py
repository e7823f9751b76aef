"""Latency and jitter of a control loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class LoopTiming:
    """Collects the times of readings and commands."""

    latencies: list[float] = field(default_factory=list)
    """Wall time from a reading to its command [s]."""
    intervals: list[float] = field(default_factory=list)
    """Time between two commands on the driver's clock [s]."""
    _read_at: float = 0.0
    _commanded_at: float | None = None

    def reading(self, taken: float) -> None:  # noqa: ARG002
        """A reading has arrived."""
        self._read_at = time.perf_counter()

    def command(self, now: float, at_rest: bool) -> None:
        """A command is sent at `now` [s] on the driver's clock; the first `at_rest` answers no reading."""
        if not at_rest:
            self.latencies.append(time.perf_counter() - self._read_at)
        if self._commanded_at is not None:
            self.intervals.append(now - self._commanded_at)
        self._commanded_at = now

    def pause(self) -> None:
        """The next command begins a new series."""
        self._commanded_at = None

    def summary(self, period: float) -> dict[str, Any]:
        """Median, 99 % and worst of the latency and of the jitter, the distance of an interval from
        `period`, in [s]."""
        jitter = [abs(interval - period) for interval in self.intervals]
        return {
            "period": period,
            "latency": quantiles(self.latencies),
            "jitter": quantiles(jitter),
        }


def quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """`median`, `p99` and `worst` of `values`; None without any."""
    if not values:
        return {"median": None, "p99": None, "worst": None}
    median, p99 = np.percentile(values, [50, 99])
    return {"median": float(median), "p99": float(p99), "worst": float(max(values))}
