"""SIGINT, SIGTERM and SIGHUP as a request to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that request a command to save and stop."""
_REPEAT = 1.0
"""Time after the first signal in which a SIGINT is taken for a repetition of it [s]."""


@dataclass
class StopRequest:
    """The signal that requested training to stop, if any."""

    signal: int | None = None


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGHUP into a request to stop after the current iteration.

    Another SIGINT raises `KeyboardInterrupt`, but only a second after the first signal, because launchers and
    terminals may send the same SIGINT several times. SIGHUP stays ignored under `nohup`. Outside the main
    thread, where Python cannot install signal handlers, there is never a request.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    terminals = [fd for fd in (1, 2) if os.isatty(fd)]
    first = 0.0

    def request_stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal first
        if number == signal.SIGHUP:
            _discard_output(terminals)
        if request.signal is None:
            request.signal, first = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - first >= _REPEAT:
            raise KeyboardInterrupt

    earlier = {
        number: signal.signal(number, request_stop)
        for number in STOP_SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _discard_output(descriptors: list[int]) -> None:
    """Discard what is written to `descriptors`: on a terminal that is gone, writing is an error."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)
