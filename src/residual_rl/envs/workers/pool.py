"""B envs, divided evenly among worker processes.

The pool and its workers exchange JSON messages through a `multiprocessing.connection.Connection`, and arrays
through shared memory. The connection uses an inherited socket, so it needs no key: no other process can
connect to it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from residual_rl.envs.workers.process import Worker, WorkerEndedError, fork_server, last_lines
from residual_rl.envs.workers.shared_memory import ArraySpec, SharedArrays
from residual_rl.errors import ConfigError, ResidualRLError


class WorkerError(ResidualRLError):
    """A worker process was killed, raised an exception, or did not answer in time."""


class WorkerPool:
    """Worker processes that step B envs.

    Each worker calls `function(cfg, num_envs)`, which returns an object with these methods:

    - `describe()` returns JSON;
    - `share(arrays)` stores NumPy arrays [num_envs, …] by name, which are rows of the pool's arrays;
    - `close()`, if there is one, is called when the pool is closed;
    - all other methods take and return JSON, and read and write these arrays.

    If a worker raises an exception, ends, or does not answer in time, the pool is closed. Errors with an
    `exit_code`, such as those of `residual_rl.errors`, are raised here as `ConfigError`, all others as
    `WorkerError`.

    Args:
        name: name for error messages, such as that of the simulator.
        function: `module:function` or `FILE.py:function`. The file is loaded by its path, and so are those
            beside it that it imports (`from .other import …`): the workers' interpreter need not have this
            package.
        cfg: first argument of the function, as JSON.
        num_envs: B.
        num_workers: number of processes; at most B are started.
        python: interpreter of the workers. If it is that of this process, they also get its `sys.path`.
        preload: modules that are slow to import. They are imported once for all workers of all pools, and
            must not start threads.
        timeout: longest duration of any call [s].
        close_seconds: time that the envs have for their `close` before the workers are killed [s].
    """

    def __init__(
        self,
        name: str,
        function: str,
        cfg: Mapping[str, Any],
        num_envs: int,
        num_workers: int,
        *,
        python: str = sys.executable,
        preload: Sequence[str] = (),
        timeout: float = 600.0,
        close_seconds: float = 0.0,
    ):
        self.num_envs = num_envs
        self._name = name
        self._timeout = timeout
        self._memory = os.memfd_create(f"{name} envs")
        self._size = 0
        self._workers: list[Worker] = []
        self._finalizer = weakref.finalize(self, _stop, self._workers, self._memory, close_seconds)
        # assign consecutive envs to each worker, in groups whose sizes differ by at most one
        num_workers = min(num_workers, num_envs)
        bounds = [num_envs * i // num_workers for i in range(num_workers + 1)]
        self._env_ids = [range(first, last) for first, last in itertools.pairwise(bounds)]
        with self._closing_on_error():
            # start all workers before waiting for the first, then create the envs in parallel
            server = fork_server(python, preload)
            self._workers += [server.start(self._memory) for _ in self._env_ids]
            for i, worker in enumerate(self._workers):
                worker.started(self._receive(i))
            arguments = [
                {"function": function, "cfg": dict(cfg), "num_envs": len(ids)} for ids in self._env_ids
            ]
            self.descriptions: list[Any] = self._call("make", arguments)
            """Results of `describe` of each worker's envs."""

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def share(self, specs: Mapping[str, ArraySpec]) -> dict[str, NDArray[Any]]:
        """Create arrays [B, …] in shared memory and pass their rows to the workers' envs.

        Further calls create further arrays.
        """
        shared = SharedArrays(self._memory, specs, self.num_envs, self._size)
        self._size = shared.size
        arguments = [
            {"layout": shared.layout, "size": shared.size, "first": ids.start, "last": ids.stop}
            for ids in self._env_ids
        ]
        with self._closing_on_error():
            self._call("share", arguments)
        return shared.arrays

    def call(self, method: str, mask: Sequence[bool] | None = None, **arguments: Any) -> list[Any]:
        """Call a method in all workers, wait for them, and return their results.

        With a `mask` [B], only workers with at least one env in it are called.
        """
        with self._closing_on_error():
            if mask is None:
                return self._call(method, [arguments] * len(self._workers))
            called = [any(mask[ids.start : ids.stop]) for ids in self._env_ids]
            return self._call(method, [arguments if is_called else None for is_called in called])

    def close(self) -> None:
        """End the processes."""
        self._finalizer()

    # --- parts ----------------------------------------------------------------------------------------------

    def _call(self, call: str, arguments: Sequence[dict[str, Any] | None]) -> list[Any]:
        """Call a function in the workers whose argument is not None, and return the results."""
        called = [i for i, argument in enumerate(arguments) if argument is not None]
        # send to all workers first, so that they work in parallel
        for i in called:
            self._workers[i].send(call, arguments[i] or {})
        return [self._receive(i) for i in called]

    def _receive(self, i: int) -> Any:
        worker = self._workers[i]
        try:
            answer = worker.receive(self._timeout)
        except WorkerEndedError as error:
            raise self._error(i, str(error)) from None
        except TimeoutError:
            worker.kill()
            lines = last_lines(worker.output)
            raise self._error(
                i,
                f"did not answer within {self._timeout:g} s and was killed; last lines of its output:"
                f" {lines}",
            ) from None
        # errors for the user are raised as such, others with the worker's output
        if "error" in answer:
            if answer["user_message"] is not None:
                raise ConfigError(answer["user_message"])
            lines = last_lines(worker.output)
            raise self._error(i, f"raised {answer['error']}; last lines of its output: {lines}")
        return answer["result"]

    def _error(self, i: int, problem: str) -> WorkerError:
        ids = self._env_ids[i]
        envs = f"env {ids.start}" if len(ids) == 1 else f"envs {ids.start} to {ids.stop - 1}"
        return WorkerError(f"{self._name} worker {i + 1} of {len(self._env_ids)} ({envs}) {problem}")

    @contextlib.contextmanager
    def _closing_on_error(self) -> Any:
        """Close the pool on any exception, since unread answers would be taken for those of the next call."""
        if not self._finalizer.alive:
            raise WorkerError(f"the {self._name} workers have ended; create a new env")
        try:
            yield
        except BaseException:
            self.close()
            raise


def _stop(workers: list[Worker], memory: int, close_seconds: float) -> None:
    for worker in workers:
        worker.connection.close()
    if close_seconds > 0.0:
        deadline = time.monotonic() + close_seconds
        for worker in workers:
            worker.wait(max(deadline - time.monotonic(), 0.0))
    for worker in workers:
        worker.close()
    workers.clear()
    os.close(memory)
