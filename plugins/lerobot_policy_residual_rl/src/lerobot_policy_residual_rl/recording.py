"""The episodes of `lerobot-record`, as a robot of the same process can follow and end them.

LeRobot tells a robot neither that an episode begins nor lets it end one: a person presses an arrow key. It
does log the beginning of each episode, from the function that holds the flags which the keys set.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from types import FrameType

_BEGINS = re.compile(r"Recording episode (\d+)")
_EXIT, _AGAIN = "exit_early", "rerecord_episode"


class Recording(logging.Handler):
    """Follows the recording of this process by its log.

    Args:
        begin: called at the beginning of an episode with its index in the dataset and the number of episodes
            that were dropped to be recorded again.
    """

    def __init__(self, begin: Callable[[int, int], None]):
        super().__init__()
        self._begin = begin
        self._flags: dict[str, bool] = {}
        self._last_index: int | None = None
        self._num_dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        begins = _BEGINS.fullmatch(record.getMessage())
        if not begins:
            return
        index = int(begins[1])
        self._num_dropped += index == self._last_index
        self._last_index = index
        self._flags = _find_flags(sys._getframe())
        self._flags[_EXIT] = False  # left over where an episode ended by time in the same step
        self._begin(index, self._num_dropped)

    def end_episode(self, again: bool = False) -> None:
        """End the episode, as the arrow keys do: → keeps it, and ← (`again`) drops it."""
        self._flags[_EXIT] = True
        if again:
            self._flags[_AGAIN] = True


def _find_flags(frame: FrameType | None) -> dict[str, bool]:
    """The flags of LeRobot's recording, among the local variables of the callers; an empty dict if there are
    none, and episodes then end by time."""
    while frame is not None:
        flags = frame.f_locals.get("events")
        if isinstance(flags, dict) and _EXIT in flags:
            return flags
        frame = frame.f_back
    logging.getLogger(__name__).warning("LeRobot's recording cannot be ended early: episodes end by time")
    return {}
