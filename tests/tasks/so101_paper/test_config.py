"""Options of so101-paper that make it harder: sparse reward, action latency and observation noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.errors import ConfigError
from residual_rl.factory import make_vec_env
from residual_rl.tasks.so101_paper.task import quaternion_product, yaw_of
from residual_rl.utils.seeding import normal


@pytest.mark.slow
def test_reward_mode__sparse_rewards_only_success() -> None:
    env = make_vec_env("so101-paper", 8, reward_mode="sparse", reward_success=3.0)
    policy = make_base_policy("jacobian-yaw", None, env)
    obs, _ = env.reset(seed=8000)
    policy.reset(torch.ones(8, dtype=torch.bool))
    solved = 0
    for _ in range(150):
        obs, reward, terminated, truncated, _ = env.step(policy.act(obs))
        assert torch.equal(reward, 3.0 * terminated)
        policy.reset(terminated | truncated)
        solved += int(terminated.sum())
    assert solved > 0


def test_action_latency__delays_actions_by_one_step() -> None:
    immediate, delayed = (
        make_vec_env("so101-paper", 1, num_threads=1, action_latency=latency) for latency in (0, 1)
    )
    actions = 2 * torch.rand(10, 1, 6) - 1
    actions[..., 5] = actions[..., 5].abs()
    targets = []
    for env, sent in ((immediate, actions), (delayed, torch.cat([actions[1:], actions[:1]]))):
        env.reset(seed=3)
        if env is delayed:
            held = env.observations()["joint_target"]
            obs, *_ = env.step(actions[0])
            assert torch.equal(obs["joint_target"], held)  # nothing has arrived yet
        targets.append(torch.cat([env.step(action)[0]["joint_target"] for action in sent]))
    np.testing.assert_allclose(targets[1], targets[0], atol=1e-6)


def noisy(**settings: Any) -> torch.Tensor:
    """Noise of `state` [61 · 16, 25] over 60 steps in which nothing moves."""
    exact, env = (make_vec_env("so101-paper", 16, **options) for options in ({}, settings))
    errors = []
    for one in (exact, env):
        obs, _ = one.reset(seed=3)
        states = [obs["state"]]
        for _ in range(60):
            obs, *_ = one.step(torch.zeros(16, 6))
            states.append(obs["state"])
        errors.append(torch.cat(states))
    return errors[1] - errors[0]


@pytest.mark.slow
def test_position_noise__has_the_configured_standard_deviation() -> None:
    error = noisy(position_noise=0.001, angle_noise=0.0087)
    # state: joint position 0-5, velocity 6-11, sheet pose 12-18, goal 19-21, fingertip 22-24
    n = len(error)
    for where, std in (
        (slice(0, 6), 0.0087),
        (slice(12, 15), 0.001),
        (slice(19, 21), 0.001),
        (slice(21, 22), 0.0087),
        (slice(22, 25), 0.001),
    ):
        np.testing.assert_allclose(error[:, where].std(0), std, rtol=4 / (2 * n) ** 0.5)
        assert (error[:, where].mean(0).abs() < 4 * std / n**0.5).all()
    assert not error[:, 6:12].any()
    assert error[0, 0] != error[16, 0]  # the noise differs between steps


def test_position_noise__depends_on_seed_and_step_alone() -> None:
    settings = {"position_noise": 0.001, "angle_noise": 0.01}
    many = make_vec_env("so101-paper", 4, **settings)
    alone = make_vec_env("so101-paper", 1, num_threads=1, **settings)
    together, by_itself = many.reset(seed=[5, 6, 7, 8])[0], alone.reset(seed=[7])[0]
    for _ in range(5):
        assert torch.equal(together["state"][[2]], by_itself["state"])
        together, by_itself = many.step(torch.zeros(4, 6))[0], alone.step(torch.zeros(1, 6))[0]


def test_quaternion_product__matches_values_worked_out_by_hand() -> None:
    quarter = torch.tensor([[0.5**0.5, 0.0, 0.0, 0.5**0.5]])
    np.testing.assert_allclose(quaternion_product(quarter, quarter), [[0.0, 0.0, 0.0, 1.0]], atol=1e-7)
    assert yaw_of(quaternion_product(quarter, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))).item() == pytest.approx(
        np.pi / 2
    )
    i, j = torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert quaternion_product(i, j).tolist() == [0.0, 0.0, 0.0, 1.0]


def test_normal__draws_are_normal_and_independent() -> None:
    from scipy import stats

    numbers = normal(torch.arange(2000), stream=torch.arange(2000) % 7, n=5)
    assert numbers.shape == (2000, 5)
    for column in numbers.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-3
    assert torch.equal(normal(torch.tensor([7]), torch.tensor([0]), 5), numbers[[7]])
    assert abs(np.corrcoef(numbers.T.numpy())[np.triu_indices(5, 1)]).max() < 0.09  # 4 / sqrt(2000)


@pytest.mark.parametrize(
    "settings",
    [{"position_noise": -1.0}, {"angle_noise": -0.1}, {"action_latency": 31}, {"max_target_step": 0.0}],
    ids=str,
)
def test_make_vec_env__invalid_value_names_the_setting(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        make_vec_env("so101-paper", 1, **settings)


def test_action_latency__requires_joint_delta() -> None:
    with pytest.raises(ConfigError, match="action_latency is for control_mode joint_delta"):
        make_vec_env("so101-paper", 1, action_latency=1, control_mode="joint_target")
