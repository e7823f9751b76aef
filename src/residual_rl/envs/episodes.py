"""The running episodes of a vec_env: seeds, lengths, returns and successes so far."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from residual_rl.errors import ConfigError, NonFiniteError
from residual_rl.types import Obs, State

_COUNTERS = ("seed", "length", "episode_return", "success_once")


class RunningEpisodes:
    """One running episode per env.

    The tensors are replaced and never written in place, because `step` has returned earlier ones to its
    caller.

    Args:
        num_envs: B.
        device: device of the tensors.
    """

    def __init__(self, num_envs: int, device: torch.device):
        zeros = torch.zeros(num_envs, device=device)
        self.seed = torch.full((num_envs,), -1, dtype=torch.int64, device=device)
        """[B] int64: seed of each env's episode; -1 if the env has none."""
        self.length = zeros.long()
        """[B] int64: steps taken."""
        self.episode_return = zeros.clone()
        """[B]: sum of rewards so far."""
        self.success_once = zeros.bool()
        """[B] bool: whether the task was solved at any step."""

    @property
    def active(self) -> Tensor:
        """[B] bool: the envs that have an episode."""
        return self.seed >= 0

    def begin(self, env_ids: Tensor, seeds: Tensor) -> None:
        """Begin the episodes of `seeds` [n] in the envs `env_ids` [n]."""
        self.seed = self.seed.index_copy(0, env_ids, seeds)
        for name in _COUNTERS[1:]:
            setattr(self, name, getattr(self, name).index_fill(0, env_ids, 0))

    def advance(self, active: Tensor, reward: Tensor, success: Tensor) -> None:
        """Count one step of the `active` [B] envs, with its `reward` [B] and `success` [B] bool."""
        self.length = self.length + active
        self.episode_return = self.episode_return + reward
        self.success_once = self.success_once | success

    def info(
        self, reward_terms: Obs, metrics: Obs, obs: Obs, success: Tensor, ended: Tensor
    ) -> dict[str, Any]:
        """The `info` that `VecEnv.step` returns for this step; `ended` [B] bool marks episodes that end."""
        episode = {
            "seed": self.seed,
            "episode_return": self.episode_return,
            "episode_length": self.length,
            "success_once": self.success_once,
            "success_at_end": success,
        }
        return {
            "reward_terms": reward_terms,
            "task_metrics": metrics,
            "final_obs": obs,
            "_final_obs": ended,
            "final_info": {**episode, **metrics},
            "_final_info": ended,
        }

    @contextlib.contextmanager
    def context(self, action: Tensor, before: Callable[[], State]) -> Iterator[None]:
        """Add what reproduces it to a `NonFiniteError`: the episodes, the `action` [B, A], and what `before`
        returns of the steps before it."""
        try:
            yield
        except NonFiniteError as error:
            found = {**before(), "action": action, "seed": self.seed, "step": self.length}
            raise NonFiniteError(str(error), dump={**error.dump, **found}) from None

    def snapshot(self, env_ids: Tensor) -> Obs:
        """The counters of the envs `env_ids` [n], [n] each."""
        return {name: getattr(self, name)[env_ids] for name in _COUNTERS}

    def restore(self, env_ids: Tensor, snapshot: Obs) -> None:
        """Set the counters of the envs `env_ids` [n] to those of a `snapshot`."""
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name).index_copy(0, env_ids, snapshot[name]))

    def state_dict(self) -> State:
        """Copies of all counters."""
        return {name: getattr(self, name).clone() for name in _COUNTERS}

    def load_state_dict(self, state: State) -> None:
        """Restore `state_dict()`. Raises `ConfigError` if it is for another number of envs."""
        if len(state["seed"]) != len(self.seed):
            raise ConfigError(f"the saved state has {len(state['seed'])} envs, this env {len(self.seed)}")
        for name in _COUNTERS:
            setattr(self, name, state[name].to(self.seed.device))
