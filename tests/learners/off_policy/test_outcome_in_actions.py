"""Whole chunks in the replay buffer: a critic must not see from an action when the episode ended."""

from __future__ import annotations

from typing import Any

import fakes
import numpy as np
import pytest
import torch
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.chunk_residual_env import ChunkResidualEnv
from residual_rl.learners.off_policy.config import TD3Cfg
from residual_rl.learners.off_policy.td3 import TD3
from residual_rl.types import BasePolicy, Obs

BASE_CHUNK = torch.tensor([[0.4, -0.2], [0.5, -0.3], [0.6, -0.4], [0.7, -0.5]])


class Dice(fakes.PointEnv):
    """Each step ends the episode with probability 0.2, with a reward of 1."""

    generator = torch.Generator()

    def step(self, actions: Tensor, mask: Tensor | None = None) -> Any:
        ends = torch.rand(self.num_envs, generator=self.generator) < 0.2
        self._position = torch.where(ends[:, None], 0.0, 5.0).expand(-1, 2)
        obs, _, terminated, truncated, info = super().step(torch.zeros_like(actions), mask)
        return obs, terminated.float(), terminated, truncated, info


class SameChunk(BasePolicy):
    """Predicts `BASE_CHUNK` whatever it sees."""

    chunk_size = num_action_steps = 4

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        return BASE_CHUNK.expand(len(env_ids), -1, -1)


def dice_env(scale: float, num_envs: int = 16) -> ChunkResidualEnv:
    env = Dice(fakes.PointCfg(max_episode_steps=1000), num_envs)
    env.generator.manual_seed(0)
    env_of_chunks = ChunkResidualEnv(env, BasePolicyExecutor(SameChunk(), env), scale)
    env_of_chunks.reset(seed=0)
    return env_of_chunks


def test_chunk_residual_env__steps_after_the_end_are_stored_as_they_would_have_been_executed() -> None:
    env = dice_env(scale=0.5)
    residual = torch.linspace(-1.0, 1.0, 16 * 8).view(16, 8)
    transition, _ = env.step(residual)
    assert 0 < transition.terminated.sum() < 16
    expected = (BASE_CHUNK.flatten() + 0.5 * residual).clamp(-1.0, 1.0)
    np.testing.assert_allclose(transition.action, expected, atol=1e-6)


def test_chunk_residual_env__counts_only_the_steps_of_envs_that_do_not_wait() -> None:
    env = dice_env(scale=0.5)
    transition, info = env.step(torch.zeros(16, 8))
    ended = info["_final_info"]
    lengths = info["final_info"]["episode_length"][ended]
    assert (lengths < 4).any()
    assert env.env_steps == 4 * int((~ended).sum()) + int(lengths.sum())
    assert transition.terminated.tolist() == ended.tolist()


@pytest.mark.slow
def test_td3__value_of_a_whole_chunk_does_not_know_the_outcome() -> None:
    """With p = 0.8⁴ to go on: Q = -p / (1 - 0.97 p) = -0.680. With zeros after the end it was -3.40."""
    cfg = TD3Cfg(
        obs_keys=("joint_position",),
        hidden_sizes=(32,),
        n_step=1,
        gamma=0.97,
        tau=0.05,
        reward_scale=1.0,
        reward_shift=-1.0,
        critic_learning_rate=3e-3,
        learning_starts=1024,
        utd=1 / 16,
        warmup_steps=10**6,
        actor_starts=10**6,
        buffer_size=20_000,
    )
    env = dice_env(scale=0.0)
    learner = TD3(cfg, env.observation_space, 8, 16)
    for _ in range(1000):
        learner.observe(env.step(learner.act(env.obs))[0])
        learner.update()
    obs, base_action = learner.policy.joined(env.obs)
    value = learner._value(learner.critics, obs, base_action, BASE_CHUNK.flatten().expand(16, -1)).mean()
    p = 0.8**4
    assert value.item() == pytest.approx(-p / (1.0 - 0.97 * p), abs=0.1)
