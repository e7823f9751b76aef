"""States of earlier episodes, in which later episodes may start."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_rl.errors import CheckpointError
from residual_rl.types import Obs, State


class StartStates:
    """The newest states that were added, of which some are drawn as the starts of episodes.

    Args:
        share: share of the episodes that start in one of them.
        seed: seed of the draws.
        capacity: number of states to keep. The oldest are dropped.
        least: number of states below which none is drawn.
    """

    def __init__(self, share: float, seed: int, capacity: int = 256, least: int = 8):
        self.share = share
        self.capacity = capacity
        self.least = least
        self._generator = torch.Generator().manual_seed(seed)
        self._states: Obs = {}
        """The states [n, …] by name, oldest first."""

    def __len__(self) -> int:
        """The number n of states."""
        return len(next(iter(self._states.values()))) if self._states else 0

    def add(self, states: Obs) -> None:
        """Add states [m, …] by name."""
        if not self._states:
            self._states = {name: value[:0] for name, value in states.items()}
        self._states = {
            name: torch.cat([kept, states[name]])[-self.capacity :] for name, kept in self._states.items()
        }

    def draw(self, count: int) -> tuple[Tensor, Obs]:
        """Which of `count` new episodes start in a stored state [count] bool, and the states of these."""
        chosen = torch.rand(count, generator=self._generator) < self.share
        if len(self) < self.least:
            return torch.zeros_like(chosen), {}
        rows = torch.randint(len(self), (int(chosen.sum()),), generator=self._generator)
        return chosen, {name: value[rows.to(value.device)] for name, value in self._states.items()}

    def state_dict(self) -> State:
        """The states and the generator."""
        return {"generator": self._generator.get_state(), "states": dict(self._states)}

    def load_state_dict(self, state: State, example: Obs) -> None:
        """Restore `state_dict()`. Raises `CheckpointError` for too many states, and for states whose names,
        shapes or dtypes are not those of `example` [1, …]."""
        for name in sorted({*state["states"], *example} if state["states"] else ()):
            found, expected = (_kind(states.get(name)) for states in (state["states"], example))
            if found != expected:
                raise CheckpointError(f"the start states have {found} for {name}, this env needs {expected}")
        counts = {len(value) for value in state["states"].values()}
        if any(count > self.capacity for count in counts):
            raise CheckpointError(f"there are more than {self.capacity} stored start states")
        if len(counts) > 1:
            raise CheckpointError(f"the start states have parts of different numbers: {sorted(counts)}")
        self._generator.set_state(state["generator"].cpu())
        self._states = dict(state["states"])


def _kind(value: Tensor | None) -> str:
    """Shape and dtype of one of the rows of `value` [n, …]."""
    return "nothing" if value is None else f"{list(value.shape[1:])} {value.dtype}"
