"""A base policy that predicts zeros."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_rl.envs.vec_env import VecEnv
from residual_rl.types import BasePolicy, Obs


class ZeroPolicy(BasePolicy):
    """Predicts zeros [b, 1, A].

    Args:
        action_dim: A.
        device: device of the actions.
    """

    def __init__(self, action_dim: int, device: torch.device):
        self._action_dim = action_dim
        self._device = device

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros(len(env_ids), 1, self._action_dim, device=self._device)


def make(cfg: None, env: VecEnv) -> ZeroPolicy:  # noqa: ARG001
    """The zero policy for `env`."""
    return ZeroPolicy(int(env.single_action_space.shape[0]), env.device)  # type: ignore[index]
