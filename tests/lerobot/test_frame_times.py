from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from residual_rl.errors import ConfigError
from residual_rl.lerobot.frame_times import FrameTimes, frame_times


def times_of(frame: list[int], stamps: list[float] | None, num_frames: int | None = None) -> FrameTimes:
    rows = 100 + np.arange(len(frame))
    values = None if stamps is None else np.array(stamps, np.float32)
    return frame_times(rows, np.array(frame), values, 10.0, num_frames or len(frame))


def test_frame_times__even_frames_are_exact() -> None:
    found = times_of([0, 1, 2], [5.0, 5.1001, 5.1999])
    assert (found.gap, found.unit) == ("", "s")
    np.testing.assert_array_equal(found.times, [0.0, 0.1, 0.2])
    np.testing.assert_array_equal(found.order, [100, 101, 102])


def test_frame_times__sorts_rows_by_the_number_of_the_frame() -> None:
    found = times_of([2, 0, 1], [0.2, 0.0, 0.1])
    np.testing.assert_array_equal(found.order, [101, 102, 100])
    assert found.gap == ""


@pytest.mark.parametrize(
    ("frame", "stamps", "num_frames", "gap", "times"),
    [
        ([0, 1, 2], [0.0, 0.1, 0.6], None, "frame 2 is 0.5 s after the one before it", [0.0, 0.1, 0.6]),
        ([0, 1, 4], [0.0, 0.1, 0.4], 5, "frame 2 is missing (2 of 5 are)", [0.0, 0.1, 0.4]),
        ([0, 1, 4], None, 5, "frame 2 is missing (2 of 5 are)", [0.0, 0.1, 0.4]),
        ([1, 2], [0.1, 0.2], 3, "frame 0 is missing (1 of 3 are)", [0.0, 0.1]),
        ([0, 1], [0.0, 0.1], 4, "frame 2 is missing (2 of 4 are)", [0.0, 0.1]),
        ([0, 1, 2], [0.0, 0.2, 0.4], None, "frame 1 is 0.2 s after the one before it", [0.0, 0.2, 0.4]),
    ],
)
def test_frame_times__names_the_first_gap(
    frame: list[int], stamps: list[float] | None, num_frames: int | None, gap: str, times: list[float]
) -> None:
    found = times_of(frame, stamps, num_frames)
    assert found.gap == gap
    np.testing.assert_allclose(found.times, times, atol=1e-6)


@pytest.mark.parametrize(("unit", "scale"), [("ms", 1e3), ("µs", 1e6), ("ns", 1e9)])
def test_frame_times__recognises_the_unit_of_timestamps(unit: str, scale: float) -> None:
    found = times_of([0, 1, 2, 3], [scale * t for t in (0.0, 0.1, 0.2, 0.9)])
    assert found.unit == unit
    assert found.gap == "frame 3 is 0.7 s after the one before it"


@pytest.mark.parametrize(
    ("frame", "stamps", "message"),
    [
        ([0, 1, 1], [0.0, 0.1, 0.2], "frame 1 is there twice"),
        ([0, 1, 2], [0.0, 0.2, 0.1], r"frame 2: its timestamp 0\.1 does not follow 0\.2"),
        ([0, 1], [0.0, float("nan")], "frame 1: its timestamp nan"),
    ],
)
def test_frame_times__refuses_time_that_does_not_advance(frame: Any, stamps: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        times_of(frame, stamps)
