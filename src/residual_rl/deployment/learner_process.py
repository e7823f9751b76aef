"""The learner beside a control loop: in its own process, or, for reproducible runs, between the steps."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Protocol

import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.config import TrainCfg
from residual_rl.envs.workers.process import describe_exit
from residual_rl.errors import ConfigError, LearnerError
from residual_rl.factory import usable_device
from residual_rl.registry import LEARNERS, load
from residual_rl.runs import checkpoint
from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.types import Learner, LearnsAsynchronously, Metrics, State, Transition

_PIECE = 16
"""Largest number of gradient steps between two looks at the messages."""
_NICENESS = 5
"""Added to that of the control loop, which has to keep its rate."""
_ANSWER_SECONDS = 120.0
"""Longest time to wait for the process [s]: to start, or to save."""


class RobotLearner(LearnsAsynchronously, Learner, Protocol):
    """What a learner must do to learn beside a robot."""


class Learning(Protocol):
    """How the control loop sees the learner. It acts with `learner`, and learns by these methods."""

    learner: RobotLearner
    metrics: Metrics
    """The most recent metrics of the learner."""

    @property
    def lag(self) -> int:
        """Gradient steps that are due for the steps so far and have not been taken."""
        ...

    def observe(self, transition: Transition) -> None:
        """Pass on a step. Never waits for the learner's process."""
        ...

    def refresh(self) -> None:
        """Apply new weights, if there are any. Raises `LearnerError` if the learner's process has ended."""
        ...

    def save(self, step: int, state: State) -> None:
        """Begin to write a checkpoint with `state` and that of the learner after all steps so far."""
        ...

    def wait(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Wait until the checkpoint is written, or `should_stop`. Raises `LearnerError`."""
        ...

    def close(self) -> None:
        """End the learner's process. May be called more than once."""
        ...


def make_robot_learner(cfg: TrainCfg, obs_space: spaces.Dict, action_dim: int) -> RobotLearner:
    """The learner of a run for one robot. Raises `ConfigError` for one that cannot learn beside it."""
    make = load(LEARNERS.get(cfg.learner_id).make)
    if not hasattr(make, "collect_interventions"):
        raise ConfigError(
            f"learner {cfg.learner_id!r} cannot learn beside a robot: choose sac, gated-sac or td3"
        )
    device = usable_device(cfg.run.device)
    learner: RobotLearner = make(cfg.learner, obs_space, action_dim, 1, device, cfg.run.seed)
    return learner


class SynchronousLearning:
    """The learner takes its updates between the steps, in the process of the control loop."""

    def __init__(self, learner: RobotLearner, checkpoints: CheckpointFolder):
        self.learner = learner
        self.metrics: Metrics = {}
        self._checkpoints = checkpoints

    @property
    def lag(self) -> int:
        """See `Learning`."""
        return self.learner.updates_due

    def observe(self, transition: Transition) -> None:
        """Observe, and take the updates that are due."""
        self.learner.observe(transition)
        self.metrics = self.metrics | self.learner.update()

    def refresh(self) -> None:
        """Does nothing: the weights are always the newest."""

    def save(self, step: int, state: State) -> None:
        """Write the checkpoint."""
        self._checkpoints.save(step, {**state, "learner": self.learner.state_dict()})

    def wait(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Does nothing: `save` has waited."""

    def close(self) -> None:
        """Does nothing."""


class AsynchronousLearning:
    """The learner runs in a process of its own.

    `learner` is a second one that only acts. The process makes the same calls of `act` and `observe`, so that
    counters, generators and the gate's choices are the same in both; its actions are not used. Messages are
    safetensors, not pickles. They are sent and received by threads: what the process has not taken yet is
    kept in memory.

    Args:
        cfg: the settings of the run.
        learner: the learner that acts, in the state of the newest checkpoint.
        obs_space: the observation space.
        checkpoints: where the process finds the checkpoint with which it starts, and writes others.
        weights_interval: longest time between two transfers of weights [s].

    Raises:
        LearnerError: the process does not start.
    """

    def __init__(
        self,
        cfg: TrainCfg,
        learner: RobotLearner,
        obs_space: spaces.Dict,
        checkpoints: CheckpointFolder,
        weights_interval: float,
    ):
        self.learner = learner
        self.metrics: Metrics = {}
        self._utd: float = cfg.learner.utd
        self._sent = self._observed = self._due = 0
        self._waits_for: str | None = "ready"
        # Start the process.
        context = multiprocessing.get_context("spawn")
        connection, theirs = context.Pipe()
        action_dim = int(obs_space["base_action"].shape[0])  # type: ignore[index]
        arguments = (theirs, cfg, obs_space, action_dim, str(checkpoints.folder), checkpoints.keep)
        self._process = context.Process(
            target=_run, args=(*arguments, weights_interval), daemon=True, name="learner"
        )
        self._process.start()
        Finalize(self, self._process.kill, exitpriority=0)  # at exit, since it ignores signals
        theirs.close()
        # Exchange messages in threads.
        self._connection = connection
        self._outbox: queue.SimpleQueue[State | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[State] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()
        try:
            self.wait()
        except BaseException:
            self.close()
            raise

    @property
    def process_id(self) -> int | None:
        """Of the learner's process."""
        return self._process.pid

    @property
    def lag(self) -> int:
        """See `Learning`."""
        return self._due + int(self._utd * (self._sent - self._observed))

    def observe(self, transition: Transition) -> None:
        """Pass on a step."""
        self.learner.observe(transition)
        self._sent += 1
        self._outbox.put({"kind": "transition", "transition": _plain(transition)})

    def refresh(self) -> None:
        """Apply new weights, if there are any."""
        weights: State | None = None
        while not self._inbox.empty():
            message = self._inbox.get()
            kind = message["kind"]
            if kind == "failed":
                raise LearnerError(f"the learner failed: {message['text']}")
            if kind == "ended":
                self._process.join(1.0)
                code = self._process.exitcode
                how = "has closed its connection" if code is None else describe_exit(code)
                raise LearnerError(f"the learner's process {how}")
            self._observed, self._due = message["observed"], message["due"]
            self.metrics = self.metrics | message.get("metrics", {})
            weights = message.get("weights", weights)
            if kind == self._waits_for:
                self._waits_for = None
        if weights is not None:
            self.learner.load_policy_state_dict(weights)

    def save(self, step: int, state: State) -> None:
        """Ask for a checkpoint."""
        self._waits_for = "saved"
        self._outbox.put({"kind": "save", "step": step, "state": checkpoint.copy_state(state)})

    def wait(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Wait until the checkpoint is written, or `should_stop`."""
        limit = time.monotonic() + _ANSWER_SECONDS
        while self._waits_for is not None and not should_stop():
            self.refresh()
            if time.monotonic() > limit:
                raise LearnerError(f"the learner's process has given no answer in {_ANSWER_SECONDS:g} s")
            time.sleep(0.002)

    def close(self) -> None:
        """End the process."""
        self._outbox.put(None)
        self._process.join(5.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _send(self) -> None:
        """The sending thread."""
        with contextlib.suppress(OSError):  # the process has ended, which the other thread reports
            while (message := self._outbox.get()) is not None:
                self._connection.send_bytes(_encode(message))
            self._connection.send_bytes(_encode({"kind": "stop"}))

    def _receive(self) -> None:
        """The receiving thread."""
        try:
            while True:
                self._inbox.put(_decode(self._connection.recv_bytes()))
        except (OSError, EOFError):
            self._inbox.put({"kind": "ended"})


# --- the learner's process ----------------------------------------------------------------------------------


def _run(
    connection: Connection,
    cfg: TrainCfg,
    obs_space: spaces.Dict,
    action_dim: int,
    folder: str,
    keep: int,
    weights_interval: float,
) -> None:
    """The main function of the process. It ends with a message, or when the control loop has ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the control loop decides when to stop
        signal.signal(number, signal.SIG_IGN)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # where the loop has a real-time priority
    os.nice(_NICENESS)
    torch.set_num_threads(cfg.run.torch_threads)
    try:
        learner = make_robot_learner(cfg, obs_space, action_dim)
        learner.collect_interventions()
        checkpoints = CheckpointFolder(Path(folder), keep)
        latest = checkpoints.latest()
        assert latest is not None  # the control loop has written one
        learner.load_state_dict(latest[1]["learner"])
        _Worker(connection, learner, checkpoints, weights_interval).run()
    except (ConnectionError, EOFError):
        pass  # the control loop has ended
    except Exception as error:  # noqa: BLE001 (whatever a learner raises, the control loop reports)
        with contextlib.suppress(OSError):
            connection.send_bytes(_encode({"kind": "failed", "text": f"{type(error).__name__}: {error}"}))


class _Worker:
    """Learns from the transitions that arrive, and answers."""

    def __init__(
        self,
        connection: Connection,
        learner: RobotLearner,
        checkpoints: CheckpointFolder,
        weights_interval: float,
    ):
        self._connection = connection
        self._learner = learner
        self._checkpoints = checkpoints
        self._interval = weights_interval
        self._observed = 0
        self._new = 0
        """Steps observed since the last update."""
        self._metrics: Metrics = {}
        self._weights_sent = time.monotonic()

    def run(self) -> None:
        """Learn until the control loop ends, or says so."""
        self._answer("ready")
        while True:
            idle = self._new == 0 and self._learner.updates_due == 0
            while self._connection.poll(1.0 if idle else 0.0):
                message = _decode(self._connection.recv_bytes())
                if message["kind"] == "stop":
                    return
                self._take(message)
                idle = False
            if self._new > 0 or self._learner.updates_due > 0:
                self._metrics = self._metrics | self._learner.update(_PIECE)
                self._new = 0
                due = time.monotonic() - self._weights_sent >= self._interval
                self._answer("updated", with_weights=due)

    def _take(self, message: State) -> None:
        """Observe a step, or write a checkpoint."""
        if message["kind"] == "transition":
            transition = Transition(**message["transition"])
            self._learner.act(transition.obs)  # as the control loop did
            self._learner.observe(transition)
            self._observed += 1
            self._new += 1
        else:
            state = {**message["state"], "learner": self._learner.state_dict()}
            self._checkpoints.save(message["step"], state)
            self._answer("saved", with_weights=True)

    def _answer(self, kind: str, with_weights: bool = False) -> None:
        message: State = {"kind": kind, "observed": self._observed, "due": self._learner.updates_due}
        if with_weights:
            message |= {"weights": self._learner.policy_state_dict(), "metrics": self._metrics}
            self._weights_sent = time.monotonic()
        self._connection.send_bytes(_encode(message))


# --- messages -----------------------------------------------------------------------------------------------


def _plain(transition: Transition) -> State:
    """The fields of a transition without images, which no off-policy learner reads."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items() if inner.dtype != torch.uint8}
        return value.cpu() if isinstance(value, Tensor) else value

    return {field.name: plain(getattr(transition, field.name)) for field in dataclasses.fields(transition)}


def _encode(message: State) -> bytes:
    return checkpoint.to_bytes(message, "dump")


def _decode(data: bytes) -> State:
    return checkpoint.from_bytes(data, "dump", "a message of the control loop or the learner")
