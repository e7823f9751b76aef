"""Progress of a training run, and its wall time by part."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from residual_rl.types import State


@dataclass
class Progress:
    """Progress of training, part of every checkpoint.

    It contains no times, so equal runs have equal checkpoints.
    """

    step: int = 0
    """Env steps so far."""
    best: tuple[float, float] | None = None
    """Success rate and mean return of the best evaluation so far."""
    episodes: int = 0
    """Number of training episodes that ended."""
    success: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    """Success (0 or 1) of the last 100 training episodes."""
    returns: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    """Returns of the last 100 training episodes."""
    lengths: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    """Lengths of the last 100 training episodes [steps]."""
    logged: int = 0
    """Env steps when metrics were last due to be logged."""

    def state_dict(self) -> State:
        """The fields as plain values."""
        return {k: list(v) if isinstance(v, deque | tuple) else v for k, v in vars(self).items()}

    def load_state_dict(self, state: State) -> None:
        """Restore the fields from `state_dict`."""
        self.step = state["step"]
        self.best = None if state["best"] is None else tuple(state["best"])
        self.episodes = state["episodes"]
        self.success = deque(state["success"], maxlen=100)
        self.returns = deque(state["returns"], maxlen=100)
        self.lengths = deque(state["lengths"], maxlen=100)
        self.logged = state["logged"]


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
