"""Logs of what other machines send: their volume is limited, and no text controls the terminal."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Any

from residual_rl.utils.text import printable

_MOST, _PERIOD = 60, 60.0


class LimitedLog:
    """Passes at most `most` messages in each `period` [s] on to `log`, and then the number of the others."""

    def __init__(self, log: logging.Logger, most: int = _MOST, period: float = _PERIOD):
        self._log, self._most, self._period = log, most, period
        self._began, self._passed, self._withheld = time.monotonic(), 0, 0

    def warning(self, message: str, *arguments: Any) -> None:
        """Log a warning."""
        self._pass_on(logging.WARNING, message, arguments, None)

    def error(self, message: str, *arguments: Any, exc_info: BaseException | None = None) -> None:
        """Log an error, with the traceback of `exc_info`."""
        self._pass_on(logging.ERROR, message, arguments, exc_info)

    def _pass_on(
        self, level: int, message: str, arguments: tuple[Any, ...], error: BaseException | None
    ) -> None:
        # Begin another period.
        now = time.monotonic()
        if now - self._began >= self._period:
            if self._withheld:
                self._log.warning("%d more messages were not logged", self._withheld)
            self._began, self._passed, self._withheld = now, 0, 0

        # Count what exceeds the limit, and announce that once.
        self._passed += 1
        if self._passed <= self._most:
            self._log.log(level, message, *arguments, exc_info=error)
            return
        if not self._withheld:
            self._log.warning(
                "further messages of the next %.0f s are only counted", self._began + self._period - now
            )
        self._withheld += 1


class PrintableFormatter(logging.Formatter):
    """Writes each message in one line, and control characters in it and in its traceback as escapes."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the name is logging's)
        """The line of a message."""
        return printable(" ".join(super().formatMessage(record).splitlines()))

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        """The lines of a traceback."""
        return "\n".join(map(printable, super().formatException(ei).splitlines()))
