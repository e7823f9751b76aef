"""States of earlier episodes, in which later episodes may start."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_rl.errors import CheckpointError
from residual_rl.types import Obs, State


class StartStates:
    """The newest states that were added, of which some are drawn as the starts of episodes.

    A state is drawn in proportion to the expected share (f + 1) / (n + 2) of failures from it, if f of the n
    episodes so far that started in it have failed.

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
        self._outcomes = torch.zeros(0, 2)
        """[n, 2]: failures and successes from each state."""
        self._num_dropped = 0
        """Number of states that were dropped; the id of a state is its index plus this number."""

    def __len__(self) -> int:
        """The number n of states."""
        return len(self._outcomes)

    def add(self, states: Obs) -> None:
        """Add states [m, …] by name."""
        if not self._states:
            self._states = {name: value[:0] for name, value in states.items()}
        new = torch.zeros(len(next(iter(states.values()))), 2)
        outcomes = torch.cat([self._outcomes, new])
        self._outcomes = outcomes[-self.capacity :]
        self._num_dropped += len(outcomes) - len(self._outcomes)
        self._states = {
            name: torch.cat([kept, states[name]])[-self.capacity :] for name, kept in self._states.items()
        }

    def draw(self, count: int) -> tuple[Tensor, Obs]:
        """The ids of the states [count] int64 in which `count` new episodes start, -1 for none, and the
        states of the others."""
        ids = torch.full((count,), -1)
        chosen = torch.rand(count, generator=self._generator) < self.share
        if len(self) < self.least or not chosen.any():
            return ids, {}
        failures = (self._outcomes[:, 0] + 1.0) / (self._outcomes.sum(1) + 2.0)
        rows = torch.multinomial(failures, int(chosen.sum()), replacement=True, generator=self._generator)
        ids[chosen] = rows + self._num_dropped
        return ids, {name: value[rows.to(value.device)] for name, value in self._states.items()}

    def count(self, state_id: int, success: bool) -> None:
        """Count an episode that started in the state `state_id`; without effect if it was dropped."""
        if state_id >= self._num_dropped:
            self._outcomes[state_id - self._num_dropped, int(success)] += 1.0

    def state_dict(self) -> State:
        """The states, their outcomes and the generator."""
        return {
            "generator": self._generator.get_state(),
            "states": dict(self._states),
            "outcomes": self._outcomes.clone(),
            "num_dropped": self._num_dropped,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore `state_dict()`."""
        if len(state["outcomes"]) > self.capacity:
            raise CheckpointError(f"there are more than {self.capacity} stored start states")
        self._generator.set_state(state["generator"].cpu())
        self._states = dict(state["states"])
        self._outcomes = state["outcomes"].clone()
        self._num_dropped = int(state["num_dropped"])
