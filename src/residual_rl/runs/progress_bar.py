"""A progress bar with speed, success rate and remaining time."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn

from residual_rl.utils.console import Console

_RATE_WINDOW = 300.0
"""Time over which the speed is averaged [s]; much longer than an evaluation."""


class ProgressBar:
    """Shows steps, steps/s, success rate and remaining time.

    On a terminal it is a live bar, otherwise a plain line every `every` seconds. Use it as a context manager
    and call `update` once per iteration. Steps/s is the average of the last five minutes, including
    evaluations, so that the remaining time includes them too.

    Args:
        total: number of steps at the end.
        start: number of steps at the beginning.
        every: time between plain lines [s].
        console: rich console; standard error by default.
        clock: returns the time [s].
        title: name in front of plain lines.
        unit: name of the counted steps.
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
        self.total = total
        self.step = start
        self.every = every
        self.title = title
        self.unit = unit
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._recent: deque[tuple[float, int]] = deque([(clock(), start)])
        self._last_line = clock()
        self._text = ""
        self._bar: Progress | None = None
        if self._console.is_terminal:
            texts = (TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.fields[text]}", markup=False))
            self._bar = Progress(BarColumn(bar_width=30), *texts, console=self._console, refresh_per_second=4)
            self._task = self._bar.add_task(title, total=total, completed=start, text="")

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._text:
            self._print()

    def restart(self) -> None:
        """Exclude the time so far from steps/s, such as that of a setup that is not repeated."""
        self._recent = deque([(self._clock(), self.step)])

    def update(self, step: int, success: float | None = None, note: str = "") -> None:
        """Show that `step` steps are done.

        Args:
            step: number of steps so far.
            success: recent success rate in [0, 1]; None if there is none yet.
            note: text to show after the success rate.
        """
        # Speed over the last minutes.
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
        steps = f"{step:,}/{self.total:,} {self.unit}  {speed:,.0f} {self.unit}/s"
        self._text = f"{steps}  success {rate}  {note}ETA {left}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=self._text)
        elif now - self._last_line >= self.every:
            self._print()

    def _print(self) -> None:
        # a closed pipe must not end the work, as it would with the console's own `print`
        with contextlib.suppress(OSError):
            print(f"{self.title}: {self._text}", file=self._console.file, flush=True)
        self._last_line = self._clock()
        self._text = ""


def clock_time(seconds: float) -> str:
    """A duration [s] as `m:ss`, or `h:mm:ss` from one hour."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
