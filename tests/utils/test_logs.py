"""Logs of what other machines send."""

from __future__ import annotations

import logging
import sys

import pytest

from residual_rl.utils import logs
from residual_rl.utils.logs import LimitedLog, PrintableFormatter


def test_limited_log__passes_on_a_number_of_messages_per_period(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    log = LimitedLog(logging.getLogger("test.limited"), most=2, period=60.0)
    for number in range(5):
        log.warning("refused %d", number)
        now[0] += 1.0
    assert [record.getMessage() for record in caplog.records] == [
        "refused 0",
        "refused 1",
        "further messages of the next 58 s are only counted",
    ]
    caplog.clear()
    now[0] += 60.0
    log.error("failed", exc_info=ValueError("x"))
    assert [record.getMessage() for record in caplog.records] == ["3 more messages were not logged", "failed"]
    assert caplog.records[1].exc_info is not None


def test_printable_formatter__escapes_messages_and_tracebacks() -> None:
    try:
        raise ValueError("a\x1b[2J")
    except ValueError:
        exc_info = sys.exc_info()
    record = logging.LogRecord("x", logging.WARNING, "", 1, "one\nWARNING: %s", ("two\x1b",), exc_info)
    first, *traceback = PrintableFormatter("%(levelname)s: %(message)s").format(record).splitlines()
    assert first == r"WARNING: one WARNING: two\x1b"
    assert traceback[0].startswith("Traceback")
    assert traceback[-1] == r"ValueError: a\x1b[2J"
