"""Signals as a request to stop, and those that arrive several times."""

from __future__ import annotations

import os
import pty
import signal
import time

import pytest

from residual_rl.utils import signals
from residual_rl.utils.signals import STOP_SIGNALS, stop_signals


@pytest.mark.parametrize("first", STOP_SIGNALS)
def test_stop_signals__only_a_later_sigint_stops_at_once(
    first: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    handlers = [signal.getsignal(number) for number in STOP_SIGNALS]
    with stop_signals() as stop:
        for number in (first, signal.SIGINT, signal.SIGINT):  # as launchers send them: together
            os.kill(os.getpid(), number)
        assert stop.signal == first
        now = 101.0
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers


def test_stop_signals__sighup_stays_ignored_under_nohup() -> None:
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_stop_signals__output_after_a_closed_terminal_is_discarded() -> None:
    pid, terminal = pty.fork()
    if pid == 0:  # the child, on a terminal of its own
        code = 1
        try:
            with stop_signals() as stop:
                os.write(1, b"ready")
                for _ in range(1000):
                    if stop.signal is not None:
                        break
                    time.sleep(0.01)
                os.write(1, b"saved")
                os.write(2, b"saved")
                code = 128 + (stop.signal or 0)
        finally:
            os._exit(code)
    assert os.read(terminal, 5) == b"ready"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
