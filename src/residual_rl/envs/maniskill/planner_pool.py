"""Episodes that worker processes plan, in the order of their seeds. A worker that dies, or takes too long, costs the episode it was at."""

from __future__ import annotations

import contextlib
import io
import json
import os
import selectors
import signal
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, BinaryIO

import numpy as np

from residual_rl.envs.maniskill.motion_planner import Arrays
from residual_rl.envs.maniskill.nursery import WorkerError, last_words, nursery
from residual_rl.envs.maniskill.planning_worker import RUN
from residual_rl.envs.maniskill.spec import Facts, WorldSettings
from residual_rl.errors import ConfigError

_PATIENCE = 5.0
"""Seconds in which a process that was killed ends."""
_LOOK = 0.2
"""Seconds between two looks whether to stop."""


@dataclass(frozen=True)
class PlanCfg:
    """What is planned, and how long that may take."""

    settings: WorldSettings
    """Of the worlds that the episodes are stored from."""
    max_episode_steps: int | None
    """None: see `Planner`."""
    ignore_terminations: bool
    time_limit: float
    """Seconds after which an episode is given up [s]."""


@dataclass(eq=False)
class _Worker:
    pid: int
    commands: BinaryIO
    answers: BinaryIO
    log: IO[bytes]
    """What it prints, errors and all."""
    ready: bool = False
    """Whether its worlds are built."""
    job: int | None = None
    """Which of the seeds it is at."""

    def end(self, patience: float = 0.0) -> int | None:
        """Kill it if it still lives in `patience` seconds, and free its pipes. Its exit code; None where it was killed here."""
        for pipe in (self.commands, self.answers):
            with contextlib.suppress(OSError):
                pipe.close()
        code = None
        with contextlib.suppress(WorkerError):  # the nursery is gone, and its children with it
            code = nursery().bury(self.pid, patience)
            if code is None:
                os.kill(self.pid, signal.SIGKILL)
                nursery().bury(self.pid, _PATIENCE)
        return code


@dataclass
class _Run:
    """Where the episodes of a list of seeds stand."""

    seeds: Sequence[int]
    next: int = 0
    """The first seed that nobody is at."""
    due: int = 0
    """The next one to hand out."""
    done: dict[int, Arrays | str] = field(default_factory=dict)


class PlanningWorkers:
    """Processes that plan episodes.

    Args:
        cfg: what they plan.
        num_workers: how many.

    Raises `ConfigError` for what cannot be planned.
    """

    def __init__(self, cfg: PlanCfg, num_workers: int):
        self._cfg = cfg
        self._workers: list[_Worker] = []
        self._stop = weakref.finalize(self, _end_all, self._workers)
        self.facts: Facts
        """What the worlds tell that the episodes are stored from."""
        self.max_episode_steps: int
        """Steps after which an episode there is cut off."""
        for _ in range(num_workers):
            self._start()
        self._hear(self._workers[0], _Run(()))

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def episodes(self, seeds: Sequence[int], stopped: Callable[[], bool] = lambda: False) -> Iterator[tuple[int, Arrays | str]]:
        """The episode of each of `seeds`, or why it was lost, with its place among them, in this order; to be asked for once.

        When `stopped()`, those that were complete by then come first.
        """
        run = _Run(seeds)
        with selectors.DefaultSelector() as selector:
            while run.due < len(seeds) and not stopped():
                self._hand_out(run)
                for worker in self._workers:
                    selector.register(worker.answers, selectors.EVENT_READ, worker)
                heard = [key.data for key, _ in selector.select(_LOOK)]
                for worker in self._workers:
                    selector.unregister(worker.answers)
                for worker in heard:
                    self._hear(worker, run)
                while run.due in run.done:
                    yield run.due, run.done.pop(run.due)
                    run.due += 1
        for i in sorted(run.done):
            yield i, run.done[i]

    def close(self) -> None:
        """End the processes."""
        self._stop()

    # --- parts --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        command_read, command_write = os.pipe()
        answer_read, answer_write = os.pipe()
        log = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        pid = nursery().start(log.fileno(), [command_read, answer_write], RUN)
        os.close(command_read)
        os.close(answer_write)
        worker = _Worker(pid, os.fdopen(command_write, "wb"), os.fdopen(answer_read, "rb"), log)
        self._workers.append(worker)
        cfg = self._cfg
        self._send(
            worker,
            {
                "settings": cfg.settings.to_json(),
                "max_episode_steps": cfg.max_episode_steps,
                "ignore_terminations": cfg.ignore_terminations,
                "time_limit": cfg.time_limit,
            },
        )

    @staticmethod
    def _send(worker: _Worker, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died: what it answers tells so
            worker.commands.write(json.dumps(message).encode() + b"\n")
            worker.commands.flush()

    def _hand_out(self, run: _Run) -> None:
        for worker in self._workers:
            if worker.ready and worker.job is None and run.next < len(run.seeds):
                worker.job, run.next = run.next, run.next + 1
                self._send(worker, {"seed": run.seeds[worker.job]})

    def _hear(self, worker: _Worker, run: _Run) -> None:
        """Take the next answer of a worker, or its death."""
        line = worker.answers.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"bytes": 0}
        data = worker.answers.read(answer["bytes"])
        if not line or len(data) < answer["bytes"]:
            self._bury(worker, run)
        elif "refused" in answer:
            self.close()
            raise ConfigError(answer["refused"])
        elif "facts" in answer:
            worker.ready, self.facts, self.max_episode_steps = True, Facts.from_json(answer["facts"]), answer["max_episode_steps"]
        else:
            assert worker.job is not None
            run.done[worker.job] = answer["lost"] if "lost" in answer else dict(np.load(io.BytesIO(data), allow_pickle=False))
            worker.job = None

    def _bury(self, worker: _Worker, run: _Run) -> None:
        """A worker has died: what it was at is lost, and another one takes its place."""
        self._workers.remove(worker)
        code, words = worker.end(_PATIENCE), last_words(worker.log)
        worker.log.close()
        how = "its pipes were closed" if code is None else signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if not worker.ready:
            self.close()
            raise WorkerError(f"a planning process died before its first episode ({how}); its last words: {words}")
        if worker.job is not None:
            late = f"it took more than {self._cfg.time_limit:g} s"
            run.done[worker.job] = late if code == -signal.SIGALRM else f"the planner's process died of it ({how})"
        self._start()


def _end_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.end()
        worker.log.close()
    workers.clear()
