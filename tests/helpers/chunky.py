"""A base policy of the point task that predicts chunks from several observations."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_rl.envs.vec_env import VecEnv
from residual_rl.registry import BasePolicySpec
from residual_rl.types import ActionChunk, BasePolicy, Obs

CHUNKY = BasePolicySpec(id="chunky", summary="heads for the origin in chunks", make=f"{__name__}:make_chunky")


class Chunky(BasePolicy):
    """Moves slowly towards the origin. It predicts four steps from the last two positions, of which three are
    executed."""

    inputs = {"position": (2,)}  # noqa: RUF012
    chunk_size, num_action_steps, num_obs_steps = 4, 3, 2

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> ActionChunk:
        position = obs["position"]
        steps = torch.stack([position[:, 1], 0.5 * position[:, 0], position[:, 1], position[:, 1]], 1)
        return ActionChunk(
            (-2.0 * steps).clamp(-1.0, 1.0),
            position[:, 1, 0].abs()[:, None] + torch.tensor([0.0, 0.1, 0.2, 0.3]),
        )


def make_chunky(cfg: None, env: VecEnv) -> Chunky:
    return Chunky()
