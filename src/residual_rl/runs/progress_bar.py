"""A progress bar with success rate and time to go."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

if TYPE_CHECKING:
    pass


_RATE_WINDOW = 300.0
"""Seconds: long beside an evaluation."""


class ProgressBar:
    """Steps done of `total`, steps/s, success and the time to go: a live bar on a terminal, else a plain line every `every` seconds.

    Use it with `with`, and call `update` once an iteration. Steps/s is over the last five minutes, with all that they were spent on:
    evaluations are a part of the time to go.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        every: float = 10.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        title: str = "train",
        unit: str = "steps",
    ):
        self.total, self.step, self.every, self.title, self.unit = total, start, every, title, unit
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._recent: deque[tuple[float, int]] = deque([(clock(), start)])
        self._last_line = clock()
        self._text = ""
        self._bar: Progress | None = None
        if self._console.is_terminal:
            texts = (TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.fields[text]}"))
            self._bar = Progress(BarColumn(bar_width=30), *texts, console=self._console, refresh_per_second=4)
            self._task = self._bar.add_task(title, total=total, completed=start, text="")

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._text:
            self._print()

    def restart(self) -> None:
        """Leave the time so far out of steps/s: it was spent on what does not come again."""
        self._recent = deque([(self._clock(), self.step)])

    def update(self, step: int, success: float | None = None, note: str = "") -> None:
        """`step` steps are done; `success` is the rate of late in [0, 1], None while there is none; `note` is shown beside it."""
        now = self._clock()
        self.step = step
        self._recent.append((now, step))
        while len(self._recent) > 2 and now - self._recent[0][0] > _RATE_WINDOW:
            self._recent.popleft()
        then, before = self._recent[0]
        speed = (step - before) / (now - then) if now > then else 0.0
        rate = "  –  " if success is None else f"{100 * success:5.1f}%"
        left = clock_time((self.total - step) / speed) if speed > 0 else "–"
        note = f"{note}  " if note else ""
        self._text = f"{step:,}/{self.total:,} {self.unit}  {speed:,.0f} {self.unit}/s  success {rate}  {note}ETA {left}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=self._text)
        elif now - self._last_line >= self.every:
            self._print()

    def _print(self) -> None:
        self._console.print(f"{self.title}: {self._text}", highlight=False, soft_wrap=True)
        self._last_line = self._clock()
        self._text = ""


def clock_time(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
