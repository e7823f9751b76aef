"""The base policy `python`: functions and classes, for one env or a batch, with state, chunks and units."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import python_case
import torch

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.base_policies.python import PythonCfg
from residual_rl.errors import BasePolicyError, ConfigError
from residual_rl.factory import make_vec_env


@pytest.fixture(autouse=True)
def calls() -> Iterator[list[Any]]:
    python_case.calls.clear()
    yield python_case.calls
    python_case.calls.clear()


def policy_of(name: str, **settings: Any) -> BasePolicyExecutor:
    env = fakes.PointEnv(fakes.PointCfg(), 3)
    return make_base_policy("python", PythonCfg(f"python_case:{name}", **settings), env)


def point_obs(scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Observations of three envs of `fakes.PointEnv`."""
    numbers = scale * torch.arange(6.0).reshape(3, 2)
    return {"state": torch.zeros(3, 5), "position": numbers, "joint_position": torch.zeros(3, 2)}


def only(*env_ids: int) -> torch.Tensor:
    return torch.tensor([env_id in env_ids for env_id in range(3)])


def test_python_policy__function_for_one_env_receives_all_observations_of_each(calls: list[Any]) -> None:
    action = policy_of("one", action_range=(-4.0, 4.0)).act(point_obs())
    assert action.tolist() == [[0.25, -0.5], [0.5, -0.5], [0.75, -0.5]]
    assert [sorted(obs) for obs in calls] == [["joint_position", "position", "state"]] * 3
    assert all(isinstance(value, np.ndarray) for value in calls[0].values())
    assert [obs["position"].tolist() for obs in calls] == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


def test_input_keys__of_one_name_are_an_array_and_of_several_a_dict(calls: list[Any]) -> None:
    policy_of("one", input_keys=("position",)).act(point_obs(), only(1))
    policy_of("one", input_keys=("position", "state")).act(point_obs(), only(1))
    assert calls[0].tolist() == [2.0, 3.0]
    assert list(calls[1]) == ["position", "state"]
    with pytest.raises(ConfigError, match="python_case:one needs the observation 'goal'; the env has"):
        policy_of("one", input_keys=("goal",))


def test_batched__function_receives_the_rows_of_the_envs(calls: list[Any]) -> None:
    policy = policy_of("together", batched=True, input_keys=("position",), action_range=(0.0, 8.0))
    assert policy.act(point_obs()).tolist() == [[-1.0, -1.0], [-0.5, -1.0], [0.0, -1.0]]
    policy.act(point_obs(), only(0, 2))
    assert calls[1].tolist() == [[0.0, 1.0], [4.0, 5.0]]


def test_batched__class_is_instantiated_once_and_reset_with_a_mask(calls: list[Any]) -> None:
    policy = policy_of("Batched", batched=True)
    policy.act(point_obs())
    assert policy.act(point_obs(), only(1))[1].tolist() == [0.25, 0.0]
    policy.reset(only(1))
    assert policy.act(point_obs())[:, 0].tolist() == [0.25, 0.125, 0.25]
    assert calls == [[0, 1, 2], [1], [False, True, False], [0, 1, 2]]
    with pytest.raises(ConfigError, match=r"NoIds has a reset, .* as policy\(obs, env_ids\)"):
        policy_of("NoIds", batched=True)


def test_python_policy__class_is_instantiated_for_each_env() -> None:
    policy = policy_of("Forgetful")
    policy.act(point_obs())
    policy.act(point_obs(), only(0, 1))
    policy.reset(only(1))
    assert policy.act(point_obs())[:, 0].tolist() == [0.75, 0.25, 0.5]


def test_load_state_dict__policy_that_cannot_be_saved_starts_anew_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = policy_of("Forgetful")
    policy.act(point_obs())
    with caplog.at_level(logging.WARNING):
        policy.load_state_dict(policy.state_dict())
    assert "python_case:Forgetful has a reset but no state_dict" in caplog.text
    assert policy.act(point_obs())[:, 0].tolist() == [0.25] * 3
    caplog.clear()
    without_state = policy_of("one", action_range=(-9.0, 9.0))
    without_state.load_state_dict(without_state.state_dict())
    assert not caplog.text


def test_python_policy__cannot_change_the_observations() -> None:
    obs = point_obs()
    policy_of("modifies").act(obs)
    assert torch.equal(obs["position"], point_obs()["position"])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fails", {}, "base policy 'python' failed: RuntimeError: out of ideas"),
        (
            "one",
            {"chunk_size": 2},
            r"one gave an action of shape \(2,\); expected \(2, 2\) \(--base.chunk-size",
        ),
        (
            "together",
            {"batched": True, "chunk_size": 2, "input_keys": ("position",)},
            r"expected \(b, 2, 2\)",
        ),
        ("one", {"batched": True}, r"python_case:one gave actions of shape \(2,\); expected \(b, 2\)"),
    ],
)
def test_python_policy__wrong_result_is_an_error(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BasePolicyError, match=message):
        policy_of(name, **settings).act(point_obs())


def test_python_cfg__refuses_wrong_settings() -> None:
    with pytest.raises(ConfigError, match=r"a policy is needed: --base\.function MODULE:NAME"):
        make_base_policy("python", None, fakes.PointEnv(fakes.PointCfg(), 3))
    for name in ("nothing", "number"):
        with pytest.raises(ConfigError, match=f"function must be .*python_case:{name}"):
            policy_of(name)
    with pytest.raises(
        ConfigError, match=r"action_range must be a lower and a higher number, not \(1.0, 1.0\)"
    ):
        PythonCfg(action_range=(1.0, 1.0))
    with pytest.raises(ConfigError, match="num_action_steps must be from 1 to chunk_size 2, not 3"):
        PythonCfg(chunk_size=2, num_action_steps=3)


def test_num_action_steps__of_a_chunk_are_executed() -> None:
    env = make_vec_env("so101-paper", 1, num_threads=1)
    obs, _ = env.reset(seed=0)
    for num_action_steps, expected in ((None, [2.0, 1.0, 1.0]), (1, [2.0, 1.0, 2.0 / 3.0])):
        cfg = dataclasses.replace(python_case.make_case(Path()), num_action_steps=num_action_steps)
        policy = make_base_policy("python", cfg, env)
        actions = torch.cat([policy.act(obs)[:, :3] for _ in range(3)])
        goal = obs["goal"][:, :3]
        np.testing.assert_allclose(actions, torch.tensor(expected)[:, None] * goal, rtol=1e-6)
