"""The clock of a control loop: steps at a fixed rate, and how well it was kept."""

from __future__ import annotations

from collections import deque
from time import monotonic, sleep
from typing import Protocol

import numpy as np

_RECENT = 3000
"""Number of steps in the statistics."""


class WallClock:
    """Real time."""

    def now(self) -> float:
        """The time [s]."""
        return monotonic()

    def wait_until(self, time: float) -> None:
        """Return at `time` [s], or at once if it has passed."""
        sleep(max(time - monotonic(), 0.0))


class SimulatedClock:
    """Simulated time, in which nothing takes time but waiting."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """The time [s]."""
        return self._now

    def wait_until(self, time: float) -> None:
        """Advance to `time` [s]."""
        self._now = max(time, self._now)


class Clock(Protocol):
    """What measures the time of a control loop, such as an `ArmDriver`."""

    def now(self) -> float:
        """The time [s]."""
        ...

    def wait_until(self, time: float) -> None:
        """Return at `time` [s], or at once if it has passed."""
        ...


class Pace:
    """Starts control steps at a fixed rate.

    A step that begins late does not shift the following ones, unless it is a whole period late.

    Args:
        rate: steps per second [Hz].
        clock: what measures the time.
        waits: whether to wait for the start of steps; otherwise only to measure them, for a robot that does.
    """

    def __init__(self, rate: float, clock: Clock, waits: bool = True):
        self.period = 1.0 / rate
        self.clock = clock
        self._waits = waits
        self._due = 0.0
        self._last: float | None = None
        self._intervals: deque[float] = deque(maxlen=_RECENT)
        """Times between the starts of consecutive steps [s]."""
        self.missed = 0
        """Steps that began a whole period late, or later."""

    def restart(self) -> None:
        """Begin anew after a pause: the next step starts at once."""
        self._last = None

    def wait(self) -> None:
        """Wait for the start of the next step."""
        if self._last is None:
            self._due = self.clock.now()
        elif self._waits:
            self._due += self.period
            if self.clock.now() - self._due >= self.period:
                self._due = self.clock.now()
            self.clock.wait_until(self._due)
        now = self.clock.now()
        if self._last is not None:
            self._intervals.append(now - self._last)
            self.missed += now - self._last >= 2.0 * self.period
        self._last = now

    @property
    def rate(self) -> float:
        """Steps per second over the recent steps [Hz]; 0 before the second step."""
        return len(self._intervals) / sum(self._intervals) if self._intervals else 0.0

    def jitter(self, share: float = 0.99) -> float:
        """The deviation of the time between two steps from the period that the `share` of the recent steps
        does not exceed [s]."""
        if not self._intervals:
            return 0.0
        return float(np.quantile(np.abs(np.array(self._intervals) - self.period), share))
