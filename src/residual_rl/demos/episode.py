"""A demonstrated episode, and where episodes come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


Tree = dict[str, Any]
"""Arrays in nested dicts."""


@dataclass(eq=False)
class Demo:
    """One episode of T steps."""

    actions: NDArray[np.float32]
    """[T, A]: what was executed, in [-1, 1]."""
    obs: dict[str, Array]
    """[T + 1, …] by name: the first one before the first action, the last one after the last. Empty where a file holds none."""
    terminated: NDArray[np.bool_]
    """[T]"""
    truncated: NDArray[np.bool_]
    """[T]"""
    rewards: NDArray[np.float32] | None = None
    """[T]"""
    success: NDArray[np.bool_] | None = None
    """[T]: whether the task was solved after this step."""
    intended_actions: NDArray[np.float32] | None = None
    """[T, A]: what the policy wanted, before noise was added: what imitation learns. None becomes `actions`."""
    base_actions: NDArray[np.float32] | None = None
    """[T, A]: the base policy's part."""
    residual_actions: NDArray[np.float32] | None = None
    """[T, A]: the residual policy's part, before its scale."""
    seed: int | None = None
    """The episode's seed, where there is one."""
    draws: dict[str, Array] = field(default_factory=dict)
    """What was drawn for the episode, by name, each without a batch."""
    env_states: Tree = field(default_factory=dict)
    """The simulator's state: [1, S] at the start, or [T + 1, S], in whatever tree of names the simulator has."""

    def __post_init__(self) -> None:
        if self.intended_actions is None:
            self.intended_actions = self.actions

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def succeeded(self) -> bool | None:
        """Whether the task was solved at any step; None where nobody knows."""
        return None if self.success is None else bool(self.success.any())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one step's actions and observations, which is the same for all episodes of a file."""
        return {
            "actions": self.actions.shape[1:],
            **{f"obs/{name}": value.shape[1:] for name, value in self.obs.items()},
        }

    def problem(self) -> str | None:
        """What is wrong with it, in one line; None if nothing is."""
        if self.actions.ndim != 2 or not self.actions.size:
            return f"actions has the shape {list(self.actions.shape)}; expected [T, A]"
        steps = len(self)
        for name, value in self.obs.items():
            if value.ndim < 1 or len(value) != steps + 1:
                return f"actions has {steps} steps but obs/{name} {len(value) if value.ndim else 'none'}, expected {steps + 1}"
        for name in ("terminated", "truncated", "success", "rewards"):
            value = getattr(self, name)
            if value is not None and value.shape != (steps,):
                return f"{name} has the shape {list(value.shape)}; expected [{steps}], one for each action"
        for name in ("intended_actions", "base_actions", "residual_actions"):
            value = getattr(self, name)
            if value is not None and value.shape != self.actions.shape:
                return f"{name} has the shape {list(value.shape)}; expected that of actions, {list(self.actions.shape)}"
        named = {name: getattr(self, name) for name in ("actions", *OPTIONAL_ARRAYS)} | {
            f"obs/{k}": v for k, v in self.obs.items()
        }
        for name, value in named.items():
            if value is not None and value.dtype.kind == "f" and not np.isfinite(value).all():
                where = ~np.isfinite(value.reshape(len(value), -1)).all(1)
                return f"{name} is NaN or infinite at step {int(np.flatnonzero(where)[0])} ({int(where.sum())} of {len(value)} steps)"
        return None


@dataclass(frozen=True)
class Lost:
    """An episode that came to nothing: its planner found no plan, crashed, or took too long."""

    seed: int
    why: str


class Planner(Protocol):
    """Gives whole episodes, from whatever it plans them with; a task names its own in `TaskSpec.planners`."""

    task: Any
    """The task's settings that the episodes hold to: an instance of `TaskSpec.config`."""
    max_episode_steps: int
    control_hz: float
    action_unit: Sequence[float]
    action_unit_name: str
    description: str
    """Who acts, in a sentence."""

    def episodes(self, seeds: Sequence[int], stopped: Callable[[], bool]) -> Iterator[Demo | Lost]:
        """The episodes of `seeds`, each once, in this order. When `stopped()`, those that were complete by then, and no more."""
        ...

    def close(self) -> None:
        """End what it runs."""
        ...


OPTIONAL_ARRAYS = ("rewards", "success", "base_actions", "residual_actions", "intended_actions")
