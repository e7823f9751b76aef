"""A vec_env whose actions get noise before they are executed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.envs.vec_env import VecEnv
from residual_rl.types import Obs
from residual_rl.utils.seeding import normal

_NOISE_STREAM = 1 << 32
"""First of the noise's streams of random numbers, one a step; the task's draws have small numbers."""


class DisturbedEnv:
    """A vec_env whose actions get noise before they are executed: `clip(action + noise)`.

    The noise is first-order autoregressive and a function of the episode's seed and the step alone.
    """

    obs: Obs
    """The current observation."""
    executed: Tensor
    """[B, A]: what the last step executed."""
    stepped: Tensor
    """[B] bool: the worlds that took it."""

    def __init__(self, env: VecEnv, std: float, correlation: float):
        self.env = env
        size = torch.ones_like(env.action_size) if env.residual_size is None else env.residual_size
        self._std, self._correlation = std * size.double(), correlation
        self.quiet = std == 0.0
        """Whether there is no noise at all."""
        self._seed = torch.full((env.num_envs,), -1, device=env.device)
        self._steps = torch.zeros_like(self._seed)
        self._value = torch.zeros(env.num_envs, len(env.action_size), dtype=torch.float64, device=env.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def restart(self, worlds: NDArray[np.int64], seeds: Sequence[int]) -> None:
        """Episodes of `seeds` begin in the `worlds`."""
        at = torch.as_tensor(worlds, device=self._seed.device)
        self._seed[at] = torch.tensor(list(seeds), dtype=torch.int64, device=self._seed.device)
        self._steps[at] = 0

    def reset(self, **arguments: Any) -> tuple[Obs, dict[str, Any]]:
        """As the env's."""
        self.obs, info = self.env.reset(**arguments)
        return self.obs, info

    def step(self, actions: Tensor, mask: Tensor | None = None) -> tuple[Obs, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Execute `actions` [B, A] with the next noise in the worlds of `mask` [B]."""
        self.stepped = self.env.active if mask is None else self.env.active & mask
        if self.quiet:
            self.executed = actions
        else:
            white = normal(self._seed, _NOISE_STREAM + self._steps, self._value.shape[1])
            kept = torch.where(self._steps[:, None] > 0, self._correlation, 0.0).double()
            value = kept * self._value + (1.0 - kept.square()).sqrt() * white
            self._value = torch.where(self.stepped[:, None], value, self._value)
            self._steps += self.stepped
            self.executed = (actions + self._std * self._value).float().clamp(-1.0, 1.0)
        result = self.env.step(self.executed, mask)
        self.obs = result[0]
        return result
