"""The rate of a control loop, on a clock of the test's."""

from __future__ import annotations

import pytest

from residual_rl.deployment.pace import Pace, SimulatedClock


class Late(SimulatedClock):
    """A clock that is late by given times."""

    def __init__(self, *late: float):
        super().__init__()
        self._late = list(late)

    def wait_until(self, time: float) -> None:
        super().wait_until(time + (self._late.pop(0) if self._late else 0.0))


def starts(pace: Pace, count: int, work: float = 0.0) -> list[float]:
    """When `count` steps begin that take `work` [s] each."""
    times = []
    for _ in range(count):
        pace.wait()
        times.append(round(pace.clock.now(), 6))
        SimulatedClock.wait_until(pace.clock, pace.clock.now() + work)  # type: ignore[arg-type]
    return times


def test_pace__steps_begin_at_the_rate_whatever_they_take() -> None:
    assert starts(Pace(10.0, SimulatedClock()), 4, work=0.07) == [0.0, 0.1, 0.2, 0.3]


def test_pace__a_late_step_does_not_shift_the_next_one() -> None:
    pace = Pace(10.0, Late(0.03))
    assert starts(pace, 4) == [0.0, 0.13, 0.2, 0.3]
    assert pace.jitter(1.0) == pytest.approx(0.03)
    assert pace.missed == 0


def test_pace__lost_periods_are_not_caught_up() -> None:
    """A step of 0.35 s: the next one begins at once, and those after it a period apart."""
    pace = Pace(10.0, SimulatedClock())
    assert starts(pace, 2, work=0.35) == [0.0, 0.35]
    assert starts(pace, 2) == [0.7, 0.8]
    assert pace.missed == 2


def test_pace_restart__a_pause_is_no_late_step() -> None:
    pace = Pace(10.0, SimulatedClock())
    starts(pace, 2)
    pace.restart()
    pace.clock.wait_until(7.0)
    assert starts(pace, 2) == [7.0, 7.1]
    assert pace.missed == 0
    assert pace.rate == pytest.approx(10.0)


def test_pace__only_measures_where_the_robot_waits() -> None:
    pace = Pace(10.0, SimulatedClock(), waits=False)
    assert starts(pace, 3, work=0.11) == [0.0, 0.11, 0.22]
    assert pace.rate == pytest.approx(1.0 / 0.11)
