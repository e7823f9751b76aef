"""GAE and discounted sums, against arrays worked out by hand, plain loops and Stable-Baselines3."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from residual_rl.learners.common.returns import bootstrap_mask, discounted_sums, gae


def columns(*envs: list[float]) -> torch.Tensor:
    """One list per env -> [T, B]."""
    return torch.tensor(envs).T


def test_gae__bootstraps_after_truncation_and_not_after_termination() -> None:
    # Both episodes end at step 1, where the value of the true final observation is 10.
    reward = columns([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])
    value = columns([2.0, 4.0, 6.0, 8.0], [2.0, 4.0, 6.0, 8.0])
    next_value = columns([4.0, 10.0, 8.0, 12.0], [4.0, 10.0, 8.0, 12.0])
    terminated = columns([False, False, False, False], [False, True, False, False])
    ended = columns([False, True, False, False], [False, True, False, False])
    advantage, target = gae(reward, value, next_value, ~terminated, ended, gamma=0.5, gae_lambda=0.5)
    # delta: 1+2-2 = 1; truncated 2+5-4 = 3, terminated 2-4 = -2; 3+4-6 = 1; 4+6-8 = 2.
    # The trace decays by 0.25.
    assert advantage.T.tolist() == [[1.75, 3.0, 1.5, 2.0], [0.5, -2.0, 1.5, 2.0]]
    assert target.T.tolist() == [[3.75, 7.0, 7.5, 10.0], [2.5, 2.0, 7.5, 10.0]]


# the target is 2 + 0.5 * 10 with the final observation's value, 2 without
@pytest.mark.parametrize(
    ("at_done", "truncated_env", "terminated_env"),
    [("truncated", 7.0, 2.0), ("always", 7.0, 7.0), ("never", 2.0, 2.0)],
)
def test_bootstrap_mask__selects_which_episodes_bootstrap_at_their_end(
    at_done: str, truncated_env: float, terminated_env: float
) -> None:
    reward, value, next_value = (
        columns([1.0, 2.0], [1.0, 2.0]),
        columns([2.0, 4.0], [2.0, 4.0]),
        columns([4.0, 10.0], [4.0, 10.0]),
    )
    terminated, ended = columns([False, False], [False, True]), columns([False, True], [False, True])
    _, target = gae(
        reward,
        value,
        next_value,
        bootstrap_mask(terminated, ended, at_done),
        ended,
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert target[1].tolist() == [truncated_env, terminated_env]


def test_gae__with_lambda_one_is_the_discounted_return_of_the_episode() -> None:
    reward = columns([1.0, 1.0, 1.0])
    value = columns([5.0, -3.0, 0.5])
    next_value = columns([-3.0, 0.5, 8.0])
    no = columns([False, False, False])
    _, target = gae(reward, value, next_value, ~no, no, gamma=0.5, gae_lambda=1.0)
    assert target.T.tolist() == [[1.0 + 0.5 + 0.25 + 0.125 * 8.0, 1.0 + 0.5 + 0.25 * 8.0, 1.0 + 0.5 * 8.0]]


def test_gae__with_lambda_zero_is_the_one_step_error() -> None:
    reward, value, next_value = columns([1.0, 2.0]), columns([3.0, 5.0]), columns([5.0, 7.0])
    no = columns([False, False])
    advantage, _ = gae(reward, value, next_value, ~no, no, gamma=0.5, gae_lambda=0.0)
    assert advantage.T.tolist() == [[1.0 + 2.5 - 3.0, 2.0 + 3.5 - 5.0]]


@given(
    st.integers(1, 12), st.integers(1, 4), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(0, 2**32 - 1)
)
def test_gae__equals_the_sum_of_discounted_errors_of_the_episode(
    steps: int, envs: int, gamma: float, lam: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, steps, envs))
    terminated, truncated = rng.random((2, steps, envs)) < 0.2
    ended = terminated | truncated
    expected = np.zeros((steps, envs))
    for b in range(envs):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps):
                bootstrap = 0.0 if terminated[k, b] else next_value[k, b]
                expected[t, b] += weight * (reward[k, b] + gamma * bootstrap - value[k, b])
                weight *= gamma * lam
                if ended[k, b]:
                    break
    advantage, target = gae(
        *map(torch.from_numpy, (reward, value, next_value, ~terminated, ended)), gamma, lam
    )
    np.testing.assert_allclose(advantage, expected, atol=1e-12)
    np.testing.assert_allclose(target, expected + value, atol=1e-12)


def test_gae__equals_stable_baselines3_without_truncation() -> None:
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    from gymnasium.spaces import Box

    steps, envs, gamma, lam = 20, 3, 0.97, 0.9
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, steps, envs)).astype(np.float32)
    last_value = rng.normal(size=envs).astype(np.float32)
    terminated = rng.random((steps, envs)) < 0.15
    buffer = buffers.RolloutBuffer(
        steps, Box(-1, 1, (1,)), Box(-1, 1, (1,)), gae_lambda=lam, gamma=gamma, n_envs=envs
    )
    starts = np.ones(envs, dtype=bool)
    for t in range(steps):
        buffer.add(
            np.zeros((envs, 1)),
            np.zeros((envs, 1)),
            reward[t],
            starts,
            torch.from_numpy(value[t]),
            torch.zeros(envs),
        )
        starts = terminated[t]
    buffer.compute_returns_and_advantage(torch.from_numpy(last_value), terminated[-1])

    next_value = np.concatenate([value[1:], last_value[None]])
    arrays = map(torch.from_numpy, (reward, value, next_value, ~terminated, terminated))
    advantage, target = gae(*arrays, gamma, lam)
    np.testing.assert_allclose(advantage, buffer.advantages, atol=1e-5)
    np.testing.assert_allclose(target, buffer.returns, atol=1e-5)


def test_discounted_sums__restart_with_each_episode() -> None:
    reward = columns([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    ended = columns([False, True, False], [False, False, True])
    sums, carried = discounted_sums(reward, ended, torch.tensor([4.0, 0.0]), gamma=0.5)
    # env 0: 1 + 0.5*4 = 3, 2 + 0.5*3 = 3.5, then a new episode with 3
    # env 1: 1, 2 + 0.5*1 = 2.5, 3 + 0.5*2.5 = 4.25, then a new episode
    assert sums.T.tolist() == [[3.0, 3.5, 3.0], [1.0, 2.5, 4.25]]
    assert carried.tolist() == [3.0, 0.0]
