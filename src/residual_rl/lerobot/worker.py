"""Calls with a time limit, for robots whose bus or camera may never answer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from residual_rl.errors import ArmError
from residual_rl.utils.text import one_line

T = TypeVar("T")


class Worker:
    """Executes calls one after the other in a thread of its own."""

    def __init__(self, name: str):
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, function: Callable[[], T], what: str, timeout: float) -> T:
        """The result of `function`.

        Raises:
            ArmError: it raised an exception, or was not done within `timeout` [s], also because an earlier
                call is not. It is then done later, and its result is lost.
        """
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put((function, answer))
        try:
            value, error = answer.get(timeout=timeout)
        except queue.Empty:
            raise ArmError(f"the arm did not answer within {timeout:g} s ({what})") from None
        if error is not None:
            raise ArmError(f"the arm failed ({what}): {type(error).__name__}: {one_line(error)}") from error
        result: T = value
        return result

    def close(self) -> None:
        """End the thread after the calls so far."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            function, answer = call
            try:
                answer.put((function(), None))
            except Exception as error:  # noqa: BLE001 (raised again where the call came from)
                answer.put((None, error))
