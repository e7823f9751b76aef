"""Order, times and gaps of the frames of a recorded episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from residual_rl.demos.episode import Array
from residual_rl.errors import ConfigError

_UNITS = {"ms": 1e-3, "µs": 1e-6, "ns": 1e-9}
"""Units other than seconds in which timestamps are recorded."""
_MAX_JITTER = 0.5
"""Deviation from the frame rate, in frames, from which on two frames have a gap between them."""


@dataclass(frozen=True)
class FrameTimes:
    """The frames of an episode in the order of time.

    Args:
        order: [T]: positions of the frames in the dataset's table, in the order of time.
        times: [T]: time of each frame after the first one [s].
        gap: why the frames are not evenly spaced; empty if they are.
        unit: unit of the recorded timestamps.
    """

    order: Array
    times: Array
    gap: str = ""
    unit: str = "s"


def frame_times(rows: Array, frame: Array, stamps: Array | None, fps: float, num_frames: int) -> FrameTimes:
    """Sort the frames of an episode, and look for gaps.

    Args:
        rows: [T]: positions of the frames in the dataset's table.
        frame: [T]: number of each frame in the episode.
        stamps: [T]: recorded timestamps; None if the dataset has none.
        fps: frames per second.
        num_frames: number of frames that the episode should have.

    Raises:
        ConfigError: a frame is there twice, or time does not advance.
    """
    sorting = np.argsort(frame, kind="stable")
    rows, frame = rows[sorting], frame[sorting]
    twice = np.flatnonzero(np.diff(frame) == 0)
    if len(twice):
        raise ConfigError(f"frame {frame[twice[0]]} is there twice")
    even = np.arange(len(rows)) / fps
    # frames that are missing according to their numbers
    expected = np.arange(max(num_frames, int(frame[-1]) + 1))
    missing = np.setdiff1d(expected, frame)
    gap = f"frame {missing[0]} is missing ({len(missing)} of {len(expected)} are)" if len(missing) else ""
    if stamps is None or len(rows) < 2:
        return FrameTimes(rows, (frame - frame[0]) / fps, gap)
    # the unit of the timestamps, from their usual step
    stamps = stamps[sorting].astype(np.float64)
    steps = np.diff(stamps)
    back = np.flatnonzero(~(steps > 0))
    if len(back):
        at = back[0] + 1
        raise ConfigError(
            f"frame {frame[at]}: its timestamp {stamps[at]:g} does not follow {stamps[at - 1]:g}"
        )
    unit, scale = "s", 1.0
    for name, size in _UNITS.items():
        if 0.5 < np.median(steps) * size * fps < 2.0:
            unit, scale = name, size
    times = scale * (stamps - stamps[0])
    # gaps in time
    late = np.flatnonzero(np.abs(np.diff(times) * fps - 1.0) > _MAX_JITTER)
    if len(late) and not gap:
        at = late[0] + 1
        gap = f"frame {frame[at]} is {times[at] - times[at - 1]:.3g} s after the one before it"
    return FrameTimes(rows, times if gap else even, gap, unit)
