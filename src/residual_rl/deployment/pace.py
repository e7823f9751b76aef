"""The clock of a control loop: steps at a fixed rate, and how well it was kept."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

_RECENT = 3000
"""Number of steps in the statistics."""


class WallClock:
    """Real time."""

    def now(self) -> float:
        """The time [s]."""
        return time.monotonic()

    def wait_until(self, instant: float) -> None:
        """Return at `instant` [s], or at once if it has passed."""
        time.sleep(max(instant - time.monotonic(), 0.0))


class SimulatedClock:
    """Simulated time, in which nothing takes time but waiting."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """The time [s]."""
        return self._now

    def wait_until(self, instant: float) -> None:
        """Advance to `instant` [s]."""
        self._now = max(instant, self._now)


class Pace:
    """Starts control steps at a fixed rate.

    A step that begins late does not shift the following ones, unless it is a whole period late.

    Args:
        rate: steps per second [Hz].
        clock: what measures the time.
    """

    def __init__(self, rate: float, clock: WallClock | SimulatedClock):
        self.period = 1.0 / rate
        self.clock = clock
        self._due: float | None = None
        self._last: float | None = None
        self._periods: deque[float] = deque(maxlen=_RECENT)
        """Times between the starts of consecutive steps [s]."""
        self.missed = 0
        """Steps that began a whole period late, or later."""

    def restart(self) -> None:
        """Begin anew after a pause: the next step starts at once."""
        self._due = self._last = None

    def wait(self) -> None:
        """Wait for the start of the next step."""
        if self._due is None:
            self._due = self.clock.now()
        self.clock.wait_until(self._due)
        now = self.clock.now()
        if self._last is not None:
            self._periods.append(now - self._last)
        self._last = now
        if now - self._due >= self.period:
            self.missed += 1
            self._due = now
        self._due += self.period

    @property
    def rate(self) -> float:
        """Steps per second over the recent steps [Hz]; 0 before the second step."""
        return len(self._periods) / sum(self._periods) if self._periods else 0.0

    def jitter(self, share: float = 0.99) -> float:
        """The deviation of the time between two steps from the period that the `share` of the recent steps
        does not exceed [s]."""
        if not self._periods:
            return 0.0
        return float(np.quantile(np.abs(np.array(self._periods) - self.period), share))
