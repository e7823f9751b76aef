"""The episodes that run in the worlds of a vec_env: their seeds, and what they came to so far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residual_rl.errors import ConfigError
from residual_rl.types import Obs, State

_COUNTERS = ("seed", "length", "episode_return", "success_once")


class RunningEpisodes:
    """One for each of B worlds. Their tensors are replaced, never written into: earlier ones belong to the caller of `step`."""

    def __init__(self, num_envs: int, device: torch.device):
        zeros = torch.zeros(num_envs, device=device)
        self.seed = torch.full((num_envs,), -1, dtype=torch.int64, device=device)
        """[B]; -1 where there is none."""
        self.length = zeros.long()
        """[B] steps"""
        self.episode_return = zeros.clone()
        """[B]"""
        self.success_once = zeros.bool()
        """[B]"""

    @property
    def active(self) -> Tensor:
        """[B] bool: where one runs."""
        return self.seed >= 0

    def begin(self, worlds: Tensor, seeds: Tensor) -> None:
        """Begin those of `seeds` [n] in `worlds` [n]."""
        self.seed = self.seed.index_copy(0, worlds, seeds)
        for name in _COUNTERS[1:]:
            setattr(self, name, getattr(self, name).index_fill(0, worlds, 0))

    def advance(self, active: Tensor, reward: Tensor, success: Tensor) -> None:
        """Count a step of the `active` [B] worlds, each with its `reward` [B] and `success` [B]."""
        self.length = self.length + active
        self.episode_return = self.episode_return + reward
        self.success_once = self.success_once | success

    def info(
        self, reward_terms: Obs, metrics: Obs, obs: Obs, success: Tensor, ended: Tensor
    ) -> dict[str, Any]:
        """What `VecEnv.step` tells of the step that was just counted, where those of `ended` [B] end with it."""
        figures = {
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
            "final_info": {**figures, **metrics},
            "_final_info": ended,
        }

    def state_dict(self) -> State:
        return {name: getattr(self, name).clone() for name in _COUNTERS}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave. Raises `ConfigError` where it is of another number of worlds."""
        if len(state["seed"]) != len(self.seed):
            raise ConfigError(f"the saved state has {len(state['seed'])} worlds, this env {len(self.seed)}")
        for name in _COUNTERS:
            setattr(self, name, state[name].to(self.seed.device))
