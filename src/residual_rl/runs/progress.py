"""How far a training is, and where its time went."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from residual_rl.types import State


@dataclass
class Progress:
    """Where training stands; part of every checkpoint, and so without times: equal runs have equal checkpoints."""

    step: int = 0
    """Env steps done."""
    best: tuple[float, float] | None = None
    """Success rate and mean return of the best evaluation so far."""
    episodes: int = 0
    """Training episodes that ended."""
    success: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    returns: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    lengths: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    logged: int = 0
    """Env steps at the last row of figures that was due."""

    def state_dict(self) -> State:
        return {k: list(v) if isinstance(v, deque | tuple) else v for k, v in vars(self).items()}

    def load_state_dict(self, state: State) -> None:
        for name, old in list(vars(self).items()):
            value: Any = state[name if name in state or name != "logged" else "step"]  # files from before had a row for each update
            setattr(self, name, deque(value, maxlen=100) if isinstance(old, deque) else tuple(value) if isinstance(value, list) else value)


@dataclass
class Timer:
    """Wall time of this session [s], by part."""

    setup: float = 0.0
    """From the session's start to `Runner.learn`: imports, and the construction of all objects."""
    simulation: float = 0.0
    """Steps of the vec_env, part of the collection."""
    base_policy: float = 0.0
    """Queries of the base policy, part of the collection."""
    collection: float = 0.0
    update: float = 0.0
    evaluation: float = 0.0
