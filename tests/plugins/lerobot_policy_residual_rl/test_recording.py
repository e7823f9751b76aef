"""`Recording`: a function that logs and keeps flags as LeRobot's `record` does, and its episodes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from lerobot_policy_residual_rl.recording import Recording

pytestmark = pytest.mark.lerobot


def record(indices: list[int], episode: Callable[[], None]) -> list[tuple[bool, bool]]:
    """The flags after each episode, which are cleared as in LeRobot."""
    events = {"exit_early": False, "rerecord_episode": False}
    found = []
    for index in indices:
        logging.info(f"Recording episode {index}")
        episode()
        found.append((events["exit_early"], events["rerecord_episode"]))
        events["rerecord_episode"] = False
    return found


@pytest.fixture
def begun() -> list[tuple[int, int]]:
    return []


@pytest.fixture
def recording(begun: list[tuple[int, int]]) -> Iterator[Recording]:
    handler = Recording(lambda index, dropped: begun.append((index, dropped)))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def test_recording__an_episode_that_is_recorded_again_counts_as_dropped(
    recording: Recording, begun: list[tuple[int, int]]
) -> None:
    record([4, 5, 5, 5, 6], lambda: None)
    assert begun == [(4, 0), (5, 0), (5, 1), (5, 2), (6, 2)]


def test_end_episode__sets_the_flags_of_lerobots_arrow_keys(recording: Recording) -> None:
    assert record([0, 1], recording.end_episode) == [(True, False), (True, False)]
    assert record([0], lambda: recording.end_episode(again=True)) == [(True, True)]
    assert record([0], lambda: None) == [(False, False)]


def test_recording__without_flags_says_that_episodes_end_by_time(
    recording: Recording, begun: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    logging.info("Recording episode 7")
    assert begun == [(7, 0)]
    assert "episodes end by time" in caplog.text
    recording.end_episode(again=True)
