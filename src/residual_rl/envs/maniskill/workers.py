"""Worlds of ManiSkill's CPU simulation, which steps one world at a time, in worker processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import tempfile
import weakref
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import torch
from torch import Tensor

from residual_rl.envs.maniskill.nursery import WorkerError, last_words, nursery
from residual_rl.envs.maniskill.shared import SharedArrays, layout
from residual_rl.envs.maniskill.sim_env import Step
from residual_rl.envs.maniskill.spec import Facts, WorldSettings
from residual_rl.envs.maniskill.worker import COMMANDS
from residual_rl.errors import ConfigError
from residual_rl.types import Obs

_PATIENCE = 5.0
"""Seconds in which a worker that was told to end does."""


@dataclass
class _Worker:
    pid: int
    rows: range
    settings: BinaryIO
    """Its end is the worker's."""
    commands: BinaryIO
    """An eventfd."""
    answers: BinaryIO
    log: IO[bytes]
    """What it prints, errors and all."""

    def leave(self) -> None:
        """Close what leads to it, which ends it if it lives."""
        for pipe in (self.settings, self.commands, self.answers):
            with contextlib.suppress(OSError):  # something may be left to write, and nobody there to read it
                pipe.close()

    def stop(self) -> None:
        """End it, in good time or not."""
        self.leave()
        with contextlib.suppress(WorkerError):  # the nursery is gone, and its children with it
            if nursery().bury(self.pid, _PATIENCE) is None:
                os.kill(self.pid, signal.SIGKILL)
                nursery().bury(self.pid, _PATIENCE)
        self.log.close()


class WorkerWorlds:
    """B worlds, shared out evenly among worker processes.

    A worker that dies ends it all with `WorkerError`, which holds the worker's last words.

    Args:
        settings: what to make.
        num_envs: B.
        num_workers: processes; no more are started than there are worlds.
    """

    device = torch.device("cpu")
    remote = True

    def __init__(self, settings: WorldSettings, num_envs: int, num_workers: int):
        self.num_envs = num_envs
        num_workers = min(num_workers, num_envs)
        self._memory_fd = os.memfd_create("maniskill-worlds")
        self._workers: list[_Worker] = []
        self._stop = weakref.finalize(self, _stop, self._workers, self._memory_fd)
        bounds = [num_envs * i // num_workers for i in range(num_workers + 1)]
        for first, last in itertools.pairwise(bounds):
            self._workers.append(_start(range(first, last), self._memory_fd))
        begin = {"settings": settings.to_json(), "num_envs": num_envs}
        for worker in self._workers:
            self._begin(worker, {**begin, "first": worker.rows.start, "count": len(worker.rows)})
        self.facts, *_ = [Facts.from_json(self._answer(worker)["facts"]) for worker in self._workers]
        self.deterministic = self.facts.deterministic
        self._shared = SharedArrays(self._memory_fd, layout(self.facts), num_envs)
        self._all("share")

    def reset(self, worlds: Tensor, seeds: Tensor) -> None:
        """Begin the episodes of `seeds` [n], each from 0 to 2^31 - 1, in `worlds` [n]."""
        go = torch.zeros(self.num_envs, dtype=torch.bool)
        go[worlds] = True
        self._shared["seed"][worlds] = seeds
        self._go(go, "reset")

    def step(self, actions: Tensor, active: Tensor) -> Step:
        """Execute `actions` [B, A] in the `active` [B] worlds. The others stand still; what they are said to give is of their last step."""
        self._shared["action"].copy_(actions)
        self._go(active, "step")
        reward, success, fail = (self._shared[name].clone() for name in ("reward", "success", "fail"))
        return Step(self.observations(), reward, success, fail, self._shared.group("metrics"))

    def observations(self) -> Obs:
        """The observation of all worlds after their last reset or step."""
        return self._shared.group("obs")

    def states(self) -> Tensor:
        """[B, 1 + S] float64: each episode's seed, and the simulator's state."""
        self._all("states")
        return self._shared["state"].clone()

    def close(self) -> None:
        """End the processes."""
        self._stop()

    # --- talking to the workers ---------------------------------------------------------------------------------

    def _go(self, go: Tensor, command: str) -> None:
        self._shared["go"].copy_(go)
        goes = go.tolist()
        self._ask([worker for worker in self._workers if any(goes[worker.rows.start : worker.rows.stop])], command)

    def _all(self, command: str) -> None:
        self._ask(self._workers, command)

    def _ask(self, workers: list[_Worker], command: str) -> None:
        if not self._stop.alive:
            raise WorkerError("the ManiSkill workers have ended: make a new env")
        number = COMMANDS.index(command) + 1
        try:
            for worker in workers:
                os.eventfd_write(worker.commands.fileno(), number)
            for worker in workers:
                self._answer(worker)
        except BaseException:  # answers that nobody reads would be taken for those of the next command
            self.close()
            raise

    def _begin(self, worker: _Worker, settings: dict[str, Any]) -> None:
        try:
            worker.settings.write(json.dumps(settings).encode() + b"\n")
            worker.settings.flush()
        except BrokenPipeError:
            raise self._death(worker) from None

    def _answer(self, worker: _Worker) -> dict[str, Any]:
        line = worker.answers.readline()
        if not line:
            raise self._death(worker)
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            self.close()
            raise ConfigError(answer["refused"])
        return answer

    def _death(self, worker: _Worker) -> WorkerError:
        code = nursery().bury(worker.pid, _PATIENCE)
        how = "its pipes are closed" if code is None else f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        number, rows, words = self._workers.index(worker) + 1, worker.rows, last_words(worker.log)
        del self._workers[number - 1]  # it is buried
        worker.leave()
        worker.log.close()
        count = len(self._workers) + 1
        self.close()
        return WorkerError(
            f"ManiSkill worker {number} of {count} (worlds {rows.start} to {rows.stop - 1}) died ({how}); its last words: {words}"
        )


def _start(rows: range, memory_fd: int) -> _Worker:
    settings_read, settings_write = os.pipe()
    answer_read, answer_write = os.pipe()
    commands = os.eventfd(0)
    log = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
    pid = nursery().start(log.fileno(), [settings_read, answer_write, memory_fd, commands])
    os.close(settings_read)
    os.close(answer_write)
    return _Worker(pid, rows, os.fdopen(settings_write, "wb"), os.fdopen(commands, "wb", 0), os.fdopen(answer_read, "rb"), log)


def _stop(workers: list[_Worker], memory_fd: int) -> None:
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.settings.close()  # all at once: they end beside each other
    for worker in workers:
        worker.stop()
    os.close(memory_fd)
