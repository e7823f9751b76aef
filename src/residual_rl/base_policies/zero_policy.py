"""Zeros as the base action: with a residual scale of 1, plain reinforcement learning."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_rl.envs.vec_env import VecEnv
from residual_rl.types import BasePolicy, Obs


class ZeroPolicy(BasePolicy):
    """Zeros [b, 1, A]."""

    def __init__(self, action_dim: int, device: torch.device):
        self._action_dim, self._device = action_dim, device

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros(len(env_ids), 1, self._action_dim, device=self._device)


def make(cfg: None, env: VecEnv) -> ZeroPolicy:  # noqa: ARG001
    """The zero policy for `env`."""
    return ZeroPolicy(int(env.single_action_space.shape[0]), env.device)  # type: ignore[index]
