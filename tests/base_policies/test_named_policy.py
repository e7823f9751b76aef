"""What a base policy of this package sees of an env that `ResidualWrapper` wraps."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from cart_envs import DictCart, ImageCart

from residual_rl.base_policies.named_policy import EnvView
from residual_rl.envs.gymnasium.config import GymnasiumEnvCfg
from residual_rl.envs.gymnasium.nested import stack
from residual_rl.envs.gymnasium.normalised_actions import NormalisedActions
from residual_rl.envs.gymnasium.vec_env import GymVecEnv


def view_of(env: gymnasium.Env, num_envs: int) -> EnvView:
    actions = NormalisedActions(env.action_space, torch.device("cpu"))
    return EnvView(env.observation_space, actions, num_envs)


@pytest.mark.slow
def test_env_view__equals_the_vec_env_of_the_same_env() -> None:
    """A base policy that was trained on `GymVecEnv` fits the wrapped env."""
    cfg = GymnasiumEnvCfg(env_id="Pendulum-v1", success_reward=0.0, render=False)
    vec_env = GymVecEnv(cfg, 2)
    view = view_of(gymnasium.make("Pendulum-v1"), 2)
    assert view.single_observation_space == vec_env.single_observation_space
    assert view.single_action_space == vec_env.single_action_space
    assert torch.equal(view.action_unit, vec_env.action_unit)
    assert view.action_unit.tolist() == [2.0]
    assert view.action_unit_name == vec_env.action_unit_name
    vec_env.close()


def test_env_view__names_entries_and_joins_numbers() -> None:
    env = DictCart()
    batch = [env.reset(seed=seed)[0] for seed in range(3)]
    named = view_of(env, 3).named(stack(batch))
    assert {name: tuple(value.shape) for name, value in named.items()} == {
        "state": (3, 3),
        "position": (3, 1),
        "more_step": (3, 1),
        "more_sign": (3, 1),
    }
    positions = np.float32([obs["position"] for obs in batch])
    np.testing.assert_array_equal(named["position"], positions)
    joined = torch.cat([named["more_sign"], named["more_step"], named["position"]], 1)
    np.testing.assert_array_equal(named["state"], joined)


def test_env_view__keeps_images() -> None:
    env = ImageCart()
    obs, _ = env.reset(seed=0)
    named = view_of(env, 1).named(torch.from_numpy(obs)[None])
    assert list(named) == ["image"]
    assert named["image"].dtype == torch.uint8
    assert named["image"].shape == (1, 4, 3, 3)
