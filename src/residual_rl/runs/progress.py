"""Progress of a training run, and its wall time by part."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, field

from residual_rl.types import State

_IMPORTED = time.perf_counter()


@dataclass
class Progress:
    """Progress of training, part of every checkpoint.

    It contains no times, so equal runs have equal checkpoints.
    """

    step: int = 0
    """Env steps so far."""
    best: tuple[float, float] | None = None
    """Success rate and mean return of the best evaluation so far."""
    best_step: int = 0
    """Env steps before it; 0 for the base policy."""
    best_scale: float = 0.0
    """Its residual scale."""
    best_outcomes: list[float] = field(default_factory=list)
    """Success (0 or 1) of its episodes, in the order of their seeds."""
    episodes: int = 0
    """Number of training episodes in the statistics so far."""
    success: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    """Success (0 or 1) of the last 100 training episodes, in the order in which they began; see
    `add_episodes`."""
    returns: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    """Returns of the last 100 training episodes."""
    lengths: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    """Lengths of the last 100 training episodes [steps]."""
    logged: int = 0
    """Env steps when metrics were last due to be logged."""
    decisions: int = 0
    """Decisions of each env so far."""
    starts: list[int] = field(default_factory=list)
    """[B]: number of the decision at which each env's running episode began."""
    ended: list[list[float]] = field(default_factory=list)
    """Start, success, return and length of the ended episodes that are not in the statistics yet."""

    def add_episodes(
        self,
        ends: list[bool],
        success: list[float],
        returns: list[float],
        lengths: list[float],
        *,
        counts: list[bool] | None = None,
    ) -> None:
        """Count a decision of all envs, with the results of the episodes that it ended, [B] each. Only those
        of `counts` (default: all) enter the statistics: not those that started in a state of another episode.

        Episodes enter the statistics in the order in which they began, once all that began with or before
        them have ended. In the order of their ends, short episodes would come first: successes, at the start
        of training.
        """
        self.starts = self.starts or [0] * len(ends)
        self.decisions += 1
        for env_id in (i for i, end in enumerate(ends) if end):
            if counts is None or counts[env_id]:
                start = float(self.starts[env_id])
                self.ended.append([start, success[env_id], returns[env_id], lengths[env_id]])
            self.starts[env_id] = self.decisions
        oldest = min(self.starts)
        ready = sorted((episode for episode in self.ended if episode[0] < oldest), key=lambda one: one[0])
        self.ended = [episode for episode in self.ended if episode[0] >= oldest]
        self.episodes += len(ready)
        for _, won, total, length in ready:
            self.success.append(won)
            self.returns.append(total)
            self.lengths.append(length)

    def state_dict(self) -> State:
        """The fields as plain values."""
        return {k: list(v) if isinstance(v, deque | tuple | list) else v for k, v in vars(self).items()}

    def load_state_dict(self, state: State) -> None:
        """Restore the fields from `state_dict`."""
        self.step = state["step"]
        self.best = None if state["best"] is None else tuple(state["best"])
        self.best_step = state["best_step"]
        self.best_scale = state["best_scale"]
        self.best_outcomes = list(state["best_outcomes"])
        self.episodes = state["episodes"]
        self.success = deque(state["success"], maxlen=100)
        self.returns = deque(state["returns"], maxlen=100)
        self.lengths = deque(state["lengths"], maxlen=100)
        self.logged = state["logged"]
        self.decisions = state["decisions"]
        self.starts = list(state["starts"])
        self.ended = [list(episode) for episode in state["ended"]]


@dataclass
class Timer:
    """Wall time of this session by part [s]."""

    setup: float = 0.0
    """From the start of the session to `Runner.learn`: imports and the construction of all objects."""
    simulation: float = 0.0
    """Steps of the vec_env, part of the collection."""
    base_policy: float = 0.0
    """Queries of the base policy, part of the collection."""
    collection: float = 0.0
    update: float = 0.0
    evaluation: float = 0.0


def session_begin() -> float:
    """The start of a session on the clock of `time.perf_counter`: for the first call in a process that of the
    process, since its imports count as set-up, and for later calls now."""
    return next(_process_start, time.perf_counter())


def _process_begin() -> float:
    """The start of this process, or the import of this module where /proc is missing."""
    try:
        with open("/proc/self/stat", "rb") as file:
            # Field 22, starttime: clock ticks after boot.
            ticks = int(file.read().rpartition(b")")[2].split()[19])
    except FileNotFoundError:
        return _IMPORTED
    return time.perf_counter() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


_process_start = iter([_process_begin()])
