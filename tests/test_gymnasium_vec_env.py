"""The vector env for `gymnasium.make_vec`, and what tools of Gymnasium's ecosystem require of infos."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.wrappers.vector import RecordEpisodeStatistics

import residual_rl
from residual_rl.errors import ConfigError
from residual_rl.gymnasium_env import GymnasiumEnv

ID = "residual_rl/SO101Paper-v0"
KWARGS: list[dict[str, Any]] = [{}, {"base_policy": "jacobian", "residual_scale": 0.5}]


def draw_actions(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1.0, 1.0, shape).astype(np.float32)


def structure(value: Any) -> Any:
    """Nested names with the type of each value, and its shape and dtype if it is an array."""
    if isinstance(value, dict):
        return {name: structure(inner) for name, inner in value.items()}
    return (value.shape, value.dtype) if isinstance(value, np.ndarray) else type(value)


@pytest.mark.parametrize("kwargs", KWARGS, ids=["bare", "jacobian"])
def test_gymnasium_vec_env__episodes_equal_those_of_single_envs(kwargs: dict[str, Any]) -> None:
    env = gymnasium.make_vec(ID, num_envs=3, max_episode_steps=4, num_threads=1, **kwargs)
    actions = draw_actions(4, 3, 6)
    obs, info = env.reset(seed=40)
    assert obs in env.observation_space
    first_structure = structure(info)
    steps = []
    for action in actions:
        steps.append(env.step(action))
        assert steps[-1][0] in env.observation_space
        assert structure({name: steps[-1][4][name] for name in info}) == first_structure
    env.close()
    for env_id in range(3):
        single = GymnasiumEnv("so101-paper", max_episode_steps=4, **kwargs)
        np.testing.assert_array_equal(single.reset(seed=40 + env_id)[0], obs[env_id])
        for step, action in enumerate(actions):
            expected, reward, _, truncated, single_info = single.step(action[env_id])
            found, rewards, _, truncations, step_info = steps[step]
            found = step_info["final_obs"] if step == 3 else found
            np.testing.assert_array_equal(found[env_id], expected)
            assert (rewards[env_id], truncations[env_id]) == (reward, truncated)
            np.testing.assert_array_equal(step_info["action"][env_id], single_info["action"])
            for name, value in single_info["reward_terms"].items():
                assert step_info["reward_terms"][name][env_id] == value
        single.close()
    assert steps[3][4]["_final_obs"].all()
    assert steps[3][0] in env.observation_space
    assert not np.array_equal(steps[3][0], steps[3][4]["final_obs"])  # the next episodes have begun


@pytest.mark.parametrize("kwargs", KWARGS, ids=["bare", "jacobian"])
def test_gymnasium_env__infos_of_reset_and_step_have_the_same_structure(kwargs: dict[str, Any]) -> None:
    env = gymnasium.make(ID, max_episode_steps=2, **kwargs)
    for _ in range(2):  # the second reset follows an autoreset
        first = structure(env.reset(seed=0)[1])
        assert first["reward_terms"]
        assert first["task_metrics"]
        for action in draw_actions(2, 6):
            assert structure(env.step(action)[4]) == first
    env.close()


def test_gymnasium_vec_env__works_with_record_episode_statistics() -> None:
    env = RecordEpisodeStatistics(gymnasium.make_vec(ID, num_envs=2, max_episode_steps=3, num_threads=1))
    env.reset(seed=0)
    rewards = 0.0
    for action in draw_actions(3, 2, 6):
        _, reward, _, _, info = env.step(action)
        rewards = rewards + reward
    env.close()
    np.testing.assert_array_equal(info["episode"]["r"], rewards)
    assert info["episode"]["l"].tolist() == [3, 3]
    assert list(env.length_queue) == [3, 3]


def test_gymnasium_vec_env__refuses_wrong_calls() -> None:
    env = gymnasium.make_vec(ID, num_envs=2, num_threads=1)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros((2, 6)))
    env.reset(seed=[3, 9])
    with pytest.raises(ConfigError, match=r"actions must have shape \(2, 6\), not \(6,\)"):
        env.step(np.zeros(6))
    with pytest.raises(ConfigError, match="reset takes no options"):
        env.reset(options={"reset_mask": np.ones(2, bool)})
    env.close()
    with pytest.raises(ConfigError, match="residual_scale requires a base_policy"):
        gymnasium.make_vec(ID, num_envs=2, residual_scale=0.5)


def test_vec_env_step__takes_numpy_actions() -> None:
    envs = [residual_rl.make_vec_env("so101-paper", 2, num_threads=1) for _ in range(2)]
    action = draw_actions(2, 6)
    for env in envs:
        env.reset(seed=0)
    with_array, with_tensor = envs[0].step(action)[0], envs[1].step(torch.from_numpy(action))[0]
    assert torch.equal(with_array["state"], with_tensor["state"])
    for env in envs:
        env.close()
