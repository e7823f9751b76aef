"""What a residual env checks in each step of any env."""

from __future__ import annotations

import logging
from typing import Any

import fakes
import pytest
import torch
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.chunk_residual_env import ChunkResidualEnv
from residual_rl.errors import ConfigError, NonFiniteError
from residual_rl.registry import RESERVED_METRICS, TaskSpec
from residual_rl.residual_env import ResidualEnv


class ForeignEnv(fakes.PointEnv):
    """An env of somebody else's, which checks nothing: `spoil` changes what a step returns."""

    def spoil(self, result: list[Any]) -> None:
        """Change `[obs, reward, terminated, truncated, info]`."""

    def step(self, actions: Tensor, mask: Tensor | None = None) -> Any:
        result = list(super().step(actions.nan_to_num(0.0), mask))
        result[4]["final_obs"] = {name: value.clone() for name, value in result[4]["final_obs"].items()}
        self.spoil(result)
        return tuple(result)


def residual_env(spoil: Any = None, cls: type[ResidualEnv] = ResidualEnv, max_episode_steps: int = 3) -> Any:
    env = ForeignEnv(fakes.PointCfg(max_episode_steps=max_episode_steps), 3)
    if spoil is not None:
        env.spoil = spoil  # type: ignore[method-assign]
    residual = cls(
        env, BasePolicyExecutor(fakes.Recorder(3, 2, 2 if cls is ChunkResidualEnv else 1), env), 0.5
    )
    residual.reset(seed=0)
    return residual


def nan_reward(result: list[Any]) -> None:
    result[1][1] = torch.nan


def nan_obs(result: list[Any]) -> None:
    result[0]["position"] = result[0]["position"].clone()
    result[0]["position"][2, 0] = torch.inf


def nan_final_obs(result: list[Any]) -> None:
    result[4]["final_obs"]["state"][:, 3] = torch.nan


@pytest.mark.parametrize("cls", [ResidualEnv, ChunkResidualEnv])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (nan_reward, r"reward is not finite in env\(s\) \[1\]"),
        (nan_obs, r"position is not finite in env\(s\) \[2\]"),
    ],
)
def test_residual_env_step__names_what_is_not_finite(
    spoil: Any, message: str, cls: type[ResidualEnv]
) -> None:
    env = residual_env(spoil, cls)
    with pytest.raises(NonFiniteError, match=message) as caught:
        env.step(torch.zeros(3, env.action_dim))
    assert {"action", "reward", "position", "obs/position"} <= caught.value.dump.keys()


def test_residual_env_step__checks_final_observations_of_ended_episodes_only() -> None:
    env = residual_env(nan_final_obs)
    env.step(torch.zeros(3, 2))
    env.step(torch.zeros(3, 2))
    with pytest.raises(NonFiniteError, match=r"final state is not finite in env\(s\) \[0, 1, 2\]"):
        env.step(torch.zeros(3, 2))


def test_residual_env_step__names_an_action_that_is_not_finite() -> None:
    env = residual_env()
    with pytest.raises(NonFiniteError, match=r"action is not finite in env\(s\) \[1\]"):
        env.step(torch.tensor([[0.0, 0.0], [torch.nan, 0.0], [0.0, 0.0]]))


def test_residual_env_reset__names_an_observation_that_is_not_finite() -> None:
    env = residual_env()
    env.vec_env.observations = lambda: {"state": torch.full((3, 5), torch.nan)}
    with pytest.raises(NonFiniteError, match="state is not finite"):
        env.reset(seed=0)


def test_residual_env_step__warns_once_about_very_large_values(caplog: pytest.LogCaptureFixture) -> None:
    def spoil(result: list[Any]) -> None:
        result[0]["state"] = result[0]["state"].clone()
        result[0]["state"][1, 3] = -3e20

    env = residual_env(spoil)
    with caplog.at_level(logging.WARNING):
        env.step(torch.zeros(3, 2))
        env.step(torch.zeros(3, 2))
    [record] = caplog.records
    assert record.getMessage().startswith("state is -3e+20 in env 1, element 3: values this large spoil")


@pytest.mark.parametrize("name", ["return", "seed", "episode_length", "success_rate"])
def test_task_spec__metric_with_a_name_of_ours_is_rejected(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"task 'mine' has a metric named {name}, which is a metric of every"
    ):
        TaskSpec("mine", "", "x:X", "x:make", "zero", metric_units={name: "m"})
    assert name in RESERVED_METRICS


def test_residual_env_step__metric_with_a_name_of_ours_is_rejected() -> None:
    def spoil(result: list[Any]) -> None:
        result[4]["task_metrics"] = {"return": torch.zeros(3)}

    with pytest.raises(
        ConfigError, match="the env has a metric named return, which is a metric of every task"
    ):
        residual_env(spoil).step(torch.zeros(3, 2))


def test_residual_env_step__reward_term_named_residual_is_rejected() -> None:
    def spoil(result: list[Any]) -> None:
        result[4]["reward_terms"] = {"residual": torch.zeros(3)}

    with pytest.raises(ConfigError, match="the env has a reward term named residual"):
        residual_env(spoil).step(torch.zeros(3, 2))
