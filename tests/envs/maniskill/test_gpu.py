"""ManiSkill's GPU simulation: devices, autoreset and partial resets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from residual_rl.envs.maniskill.vec_env import ManiSkillVecEnv
from residual_rl.errors import ConfigError
from residual_rl.tasks.maniskill.config import ManiSkillCfg
from residual_rl.tasks.maniskill.factory import make

pytestmark = [pytest.mark.maniskill, pytest.mark.gpu]


@pytest.fixture(scope="module")
def env() -> Iterator[ManiSkillVecEnv]:
    made = make(ManiSkillCfg(env_id="PushCube-v1", max_episode_steps=5), 16, 1, "cuda")
    yield made
    made.close()


def test_maniskill_vec_env__all_tensors_are_on_the_gpu(env: ManiSkillVecEnv) -> None:
    obs, info = env.reset(seed=0)
    assert not env.deterministic
    for _ in range(6):
        obs, reward, terminated, truncated, info = env.step(torch.rand(16, 8, device=env.device) * 2 - 1)
    tensors = [
        *obs.values(),
        reward,
        terminated,
        truncated,
        info["_final_obs"],
        *info["final_info"].values(),
        *info["final_obs"].values(),
    ]
    assert {value.device.type for value in tensors} == {"cuda"}
    assert obs["state"].shape == (16, 35)


def test_maniskill_vec_env__gpu_envs_reset_in_the_step_that_ends_the_episode(env: ManiSkillVecEnv) -> None:
    start, _ = env.reset(seed=0)
    for step in range(5):
        obs, *_, truncated, info = env.step(torch.full((16, 8), 0.5, device=env.device))
        assert truncated.all() == (step == 4)
    assert info["final_info"]["episode_length"].tolist() == [5] * 16
    assert info["final_info"]["seed"].tolist() == list(range(16))
    assert not torch.equal(info["final_obs"]["tcp_pose"], obs["tcp_pose"])
    assert torch.allclose(obs["joint_position"], start["joint_position"], atol=0.2)


def test_maniskill_vec_env__partial_reset_on_the_gpu_leaves_other_envs_unchanged(
    env: ManiSkillVecEnv,
) -> None:
    env.reset(seed=0)
    before, *_ = env.step(torch.full((16, 8), 0.5, device=env.device))
    mask = torch.zeros(16, dtype=torch.bool, device=env.device)
    mask[3] = mask[9] = True
    positions = []
    for seed in (100, 200, 100):
        obs, info = env.reset(seed=[seed, seed + 1], mask=mask)
        assert info["seed"][mask].tolist() == [seed, seed + 1]
        assert torch.equal(obs["obj_pose"][~mask], before["obj_pose"][~mask])
        positions.append(obs["obj_pose"][mask][:, :2])
    assert not torch.allclose(positions[0], positions[1])
    assert torch.allclose(positions[0], positions[2], atol=1e-5)


def test_maniskill_vec_env__gpu_simulation_rejects_a_step_mask(env: ManiSkillVecEnv) -> None:
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="cannot step a subset of the envs"):
        env.step(
            torch.zeros(16, 8, device=env.device), mask=torch.ones(16, dtype=torch.bool, device=env.device)
        )
