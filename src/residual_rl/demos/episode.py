"""A demonstrated episode, and the interface of planners that produce whole episodes."""

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
    """[T, A]: executed actions, in [-1, 1]."""
    obs: dict[str, Array]
    """[T + 1, …] by name: from before the first action to after the last. Empty if the file has none."""
    terminated: NDArray[np.bool_]
    """[T]: whether the episode terminated with the step."""
    truncated: NDArray[np.bool_]
    """[T]: whether the episode was truncated after the step."""
    rewards: NDArray[np.float32] | None = None
    """[T]: rewards of the task."""
    success: NDArray[np.bool_] | None = None
    """[T]: whether the task was solved after the step."""
    intended_actions: NDArray[np.float32] | None = None
    """[T, A]: the policy's actions before noise was added, the targets of imitation. None is set to
    `actions`."""
    base_actions: NDArray[np.float32] | None = None
    """[T, A]: actions of the base policy."""
    residual_actions: NDArray[np.float32] | None = None
    """[T, A]: actions of the residual policy, before scaling."""
    seed: int | None = None
    """The episode's seed, if known."""
    draws: dict[str, Array] = field(default_factory=dict)
    """The episode's random draws by name, without a batch."""
    env_states: Tree = field(default_factory=dict)
    """The simulator's state, [1, S] at the start or [T + 1, S], in the simulator's own tree of names."""

    def __post_init__(self) -> None:
        if self.intended_actions is None:
            self.intended_actions = self.actions

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def succeeded(self) -> bool | None:
        """Whether the task was solved at any step; None if not stored."""
        return None if self.success is None else bool(self.success.any())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one step's actions and observations, which are the same for all episodes of a file."""
        return {
            "actions": self.actions.shape[1:],
            **{f"obs/{name}": value.shape[1:] for name, value in self.obs.items()},
        }

    def problem(self) -> str | None:
        """A one-line description of the first inconsistency; None if the episode is valid."""
        # Shapes.
        if self.actions.ndim != 2 or not self.actions.size:
            return f"actions has the shape {list(self.actions.shape)}; expected [T, A]"
        steps = len(self)
        for name, value in self.obs.items():
            if value.ndim < 1 or len(value) != steps + 1:
                found = len(value) if value.ndim else "none"
                return f"actions has {steps} steps but obs/{name} {found}, expected {steps + 1}"
        for name in ("terminated", "truncated", "success", "rewards"):
            value = getattr(self, name)
            if value is not None and value.shape != (steps,):
                return f"{name} has the shape {list(value.shape)}; expected [{steps}], one for each action"
        for name in ("intended_actions", "base_actions", "residual_actions"):
            value = getattr(self, name)
            if value is not None and value.shape != self.actions.shape:
                expected = list(self.actions.shape)
                return f"{name} has the shape {list(value.shape)}; expected that of actions, {expected}"

        # Values.
        named = {name: getattr(self, name) for name in ("actions", *OPTIONAL_ARRAYS)}
        named |= {f"obs/{name}": value for name, value in self.obs.items()}
        for name, value in named.items():
            if value is not None and value.dtype.kind == "f" and not np.isfinite(value).all():
                where = ~np.isfinite(value.reshape(len(value), -1)).all(1)
                first = int(np.flatnonzero(where)[0])
                count = f"{int(where.sum())} of {len(value)} steps"
                return f"{name} is NaN or infinite at step {first} ({count})"
        return None


def ends_of(steps: int, success: Array | None) -> tuple[Array, Array]:
    """`terminated` and `truncated` [T] of an episode that ends with its last step, and terminates if that has
    success [T] bool."""
    ends = np.arange(steps) == steps - 1
    terminated = np.zeros_like(ends) if success is None else ends & success
    return terminated, ends & ~terminated


@dataclass(frozen=True)
class FailedEpisode:
    """An episode without a result: its planner found no plan, crashed, or took too long."""

    seed: int
    """The episode's seed."""
    why: str
    """The reason, in one line."""


class Planner(Protocol):
    """Produces whole episodes by motion planning; a task registers its planners in `TaskSpec.planners`."""

    task: Any
    """The task's settings of the episodes, an instance of `TaskSpec.config`."""
    max_episode_steps: int
    """Steps after which an episode is truncated."""
    control_hz: float
    """Steps per second [Hz]."""
    action_unit: Sequence[float]
    """[A]: the physical value of an action of 1, in `action_unit_name`."""
    action_unit_name: str
    """Unit of `action_unit`."""
    description: str
    """Description of the planner, in a sentence."""

    def episodes(self, seeds: Sequence[int], stopped: Callable[[], bool]) -> Iterator[Demo | FailedEpisode]:
        """The episodes of `seeds`, each once and in order. After `stopped()`, only those already complete."""
        ...

    def close(self) -> None:
        """Stop the planner's processes."""
        ...


OPTIONAL_ARRAYS = ("rewards", "success", "base_actions", "residual_actions", "intended_actions")
