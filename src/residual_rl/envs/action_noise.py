"""Noise on executed actions, for demonstrations that show how to recover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.envs.vec_env import VecEnv
from residual_rl.types import Obs
from residual_rl.utils.seeding import normal

_NOISE_STREAM = 1 << 32
"""First of the noise's random streams, one per step; a task's draws use streams with small numbers."""


class ActionNoise:
    """A step hook that executes `clip(action + noise)`; see `residual_rl.residual_env.StepHook`.

    The noise is first-order autoregressive. It is a function of the episode's seed and the step alone.

    Args:
        vec_env: the envs whose actions get noise.
        std: standard deviation, in units of the env's `residual_unit`.
        correlation: correlation of the noise from one step to the next, in [0, 1).
    """

    intended: Tensor
    """[B, A]: the policy's action in the last step, before the noise."""
    executed: Tensor
    """[B, A]: the action executed in the last step."""
    stepped: Tensor
    """[B] bool: the envs that took the last step."""
    obs: Obs
    """The observation after the last step, or after the reset."""

    def __init__(self, vec_env: VecEnv, std: float, correlation: float):
        shape = (vec_env.num_envs, len(vec_env.action_unit))
        unit = vec_env.residual_unit
        if unit is None:
            unit = torch.ones_like(vec_env.action_unit)
        self.quiet = std == 0.0
        """Whether there is no noise."""
        self._std = std * unit.double()
        self._correlation = correlation
        self._seed = torch.full((vec_env.num_envs,), -1, device=vec_env.device)
        self._steps = torch.zeros_like(self._seed)
        self._value = torch.zeros(shape, dtype=torch.float64, device=vec_env.device)

    def restart(self, env_ids: NDArray[np.int64], seeds: Sequence[int]) -> None:
        """Restart the noise in the envs `env_ids` [n], where the episodes of `seeds` begin."""
        at = torch.as_tensor(env_ids, device=self._seed.device)
        self._seed[at] = torch.tensor(list(seeds), dtype=torch.int64, device=self._seed.device)
        self._steps[at] = 0

    def before_step(self, action: Tensor, stepping: Tensor) -> Tensor:
        """Return the action [B, A] to execute, and advance the noise of the envs in `stepping` [B] bool."""
        self.intended = action
        self.stepped = stepping
        self.executed = action if self.quiet else self._add_noise(action)
        return self.executed

    def after_step(self, obs: Obs) -> None:
        """Store the observation after the step."""
        self.obs = obs

    def _add_noise(self, action: Tensor) -> Tensor:
        white = normal(self._seed, _NOISE_STREAM + self._steps, self._value.shape[1])
        kept = torch.where(self._steps[:, None] > 0, self._correlation, 0.0).double()
        value = kept * self._value + (1.0 - kept.square()).sqrt() * white
        self._value = torch.where(self.stepped[:, None], value, self._value)
        self._steps += self.stepped
        return (action + self._std * self._value).float().clamp(-1.0, 1.0)
