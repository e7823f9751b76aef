"""The wrappers on envs of ManiSkill, unbatched in NumPy and batched in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mani_skill")
pytestmark = pytest.mark.maniskill

import maniskill_case  # noqa: E402
from mani_skill.utils.wrappers.gymnasium import CPUGymWrapper  # noqa: E402
from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv  # noqa: E402

from residual_rl import ResidualVectorWrapper, ResidualWrapper  # noqa: E402
from residual_rl.errors import ConfigError  # noqa: E402

STEPS = 3


def make_env() -> Any:
    return maniskill_case.bare("PushCube-v1", max_episode_steps=STEPS)


def closer(obs: torch.Tensor) -> torch.Tensor:
    """A batched policy: half of the negative joint positions."""
    assert isinstance(obs, torch.Tensor)
    return -0.5 * obs[:, :8]


def test_residual_vector_wrapper__wraps_the_vector_env_of_maniskill() -> None:
    env = ResidualVectorWrapper(ManiSkillVectorEnv(make_env()), closer, residual_scale=0.5)
    plain = ManiSkillVectorEnv(make_env())
    size = plain.single_observation_space.shape[0]
    assert env.single_observation_space.shape == (size + 8,)

    def with_base(observed: torch.Tensor) -> torch.Tensor:
        return torch.cat([observed, closer(observed).clamp(-1.0, 1.0)], 1)

    obs, _ = env.reset(seed=3)
    expected, _ = plain.reset(seed=3)
    residuals = np.random.default_rng(0).uniform(-1.0, 1.0, (STEPS, 1, 8)).astype(np.float32)
    for residual in torch.from_numpy(residuals):
        torch.testing.assert_close(obs, with_base(expected))
        action = (closer(expected).clamp(-1.0, 1.0) + 0.5 * residual).clamp(-1.0, 1.0)
        obs, reward, _, truncated, info = env.step(residual)
        expected, expected_reward, _, _, expected_info = plain.step(action)
        torch.testing.assert_close(info["action"], action)
        torch.testing.assert_close(reward, expected_reward)
    assert truncated.all()
    final_obs = expected_info["final_observation"]
    torch.testing.assert_close(info["final_observation"], with_base(final_obs))
    # The first observation of the next episode, which ManiSkill draws without a seed
    torch.testing.assert_close(obs, with_base(obs[:, :size]))
    assert not torch.equal(obs, info["final_observation"])
    env.close()
    plain.close()


def test_residual_wrapper__wraps_a_cpu_env_of_maniskill() -> None:
    env = ResidualWrapper(
        CPUGymWrapper(make_env()), lambda obs: -0.5 * obs[:8].clip(-1.0, 1.0), residual_scale=0.5
    )
    obs, _ = env.reset(seed=3)
    assert isinstance(obs, np.ndarray)
    assert obs in env.observation_space
    np.testing.assert_allclose(obs[-8:], -0.5 * obs[:8].clip(-1.0, 1.0), atol=1e-6)
    obs, reward, _, _, info = env.step(np.zeros(8, np.float32))
    assert isinstance(reward, float)
    np.testing.assert_array_equal(info["action"], info["base_action"])
    with pytest.raises(ConfigError, match="CPUGymWrapper"):
        ResidualWrapper(env.unwrapped, closer, 0.5)
    env.close()
