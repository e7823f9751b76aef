"""A log whose volume is limited."""

from __future__ import annotations

import logging

import pytest

from residual_rl.utils import limited_log
from residual_rl.utils.limited_log import LimitedLog


def test_limited_log__passes_on_a_number_of_messages_per_period(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(limited_log.time, "monotonic", lambda: now[0])
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
