"""The base policy `expert`: the contract of base policies, its settings, and its noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import base_policy_contract as contract
import gymnasium_toys
import pytest
import torch

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.base_policies.expert import ExpertCfg
from residual_rl.base_policies.expert_policy import ExpertPolicy
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.envs.gymnasium.vec_env import GymVecEnv
from residual_rl.errors import ConfigError
from residual_rl.factory import make_residual_env, make_vec_env, with_obs_keys
from residual_rl.types import Obs

ID = "expert"
TOY = {"env_id": "Toys/Point-v0", "env_modules": (gymnasium_toys.MODULE,), "env_kwargs": ("habit=flat",)}
ADAPTER = """
class GoToTheGoal:
    def expert(self, env, obs):
        return obs[1]
"""
ConfigOf = Callable[[str], ExpertCfg]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of an env with an expert."""
    file = tmp_path_factory.mktemp("adapter") / "go.py"
    file.write_text(ADAPTER)
    return {**TOY, "adapter": f"{file}:GoToTheGoal"}


@pytest.fixture(scope="module")
def env(toy: dict[str, Any]) -> Iterator[GymVecEnv]:
    made = make_vec_env("gymnasium", contract.NUM_ENVS, num_threads=1, **toy)
    yield made
    made.close()


@pytest.fixture(scope="module")
def lone_env(toy: dict[str, Any]) -> Iterator[GymVecEnv]:
    made = make_vec_env("gymnasium", 1, num_threads=1, **toy)
    yield made
    made.close()


@pytest.fixture(scope="module")
def seen(env: GymVecEnv) -> list[Obs]:
    return contract.observations_of(make_base_policy(ID, ExpertCfg(noise=0.3), env), env)


@pytest.fixture(scope="module")
def settings() -> ConfigOf:
    return lambda _: ExpertCfg(gain=0.7, bias=(0.1, -0.2), noise=0.3)


PER_ENV = "actions_of_an_env_do_not_depend_on_other_envs"
FINAL = "query_for_a_final_observation_affects_only_its_env"


@pytest.mark.parametrize(
    "name",
    [
        "base_policy__returns_a_bounded_action_for_each_env",
        "base_policy__instances_agree_and_share_no_state",
        "base_policy_reset__affects_only_the_envs_of_the_mask",
        "base_policy_state_dict__resumes_bit_for_bit",
        "base_policy_inputs__are_the_only_observations_it_reads",
    ],
)
def test_expert__keeps_the_contract_of_base_policies(
    name: str, settings: ConfigOf, env: GymVecEnv, seen: list[Obs]
) -> None:
    getattr(contract, f"test_{name}")(ID, settings, env, seen)


def test_expert__acts_alike_in_any_batch(
    settings: ConfigOf, env: GymVecEnv, lone_env: GymVecEnv, seen: list[Obs]
) -> None:
    getattr(contract, f"test_base_policy__{PER_ENV}")(ID, settings, 2, env, lone_env, seen)
    getattr(contract, f"test_base_policy__{FINAL}")(ID, settings, 10, 1, env, seen)


def obs_of(env: GymVecEnv, *actions: Any) -> Obs:
    """Observations with these expert actions, in states that differ."""
    rows = torch.tensor(actions)
    size = env.single_observation_space["state"].shape[0]  # type: ignore[index]
    return {"expert_action": rows, "state": torch.arange(len(rows) * size).reshape(-1, size).float()}


def predict(cfg: ExpertCfg, env: GymVecEnv, obs: Obs) -> torch.Tensor:
    return ExpertPolicy(cfg, env).predict_action_chunk(obs, torch.arange(len(obs["state"])))


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        ((), [[0.25, -0.5], [0.0, 0.1]]),
        ((0.5,), [[0.75, 0.0], [0.5, 0.6]]),
        ((0.5, -0.1), [[0.75, -0.6], [0.5, 0.0]]),
    ],
)
def test_expert_policy__multiplies_by_the_gain_and_adds_the_bias(
    bias: tuple[float, ...], expected: Any, env: GymVecEnv
) -> None:
    chunk = predict(ExpertCfg(gain=0.5, bias=bias), env, obs_of(env, [0.5, -1.0], [0.0, 0.2]))
    assert torch.allclose(chunk, torch.tensor(expected)[:, None], atol=1e-7)


def test_expert_policy__noise_has_its_size_and_depends_on_the_state_and_the_seed(env: GymVecEnv) -> None:
    obs = obs_of(env, *[[0.1, 0.1]] * 4000)
    noise = predict(ExpertCfg(noise=0.2), env, obs) - 0.1
    assert noise.mean().abs() < 0.01
    assert abs(noise.std().item() - 0.2) < 0.01
    assert len(noise.flatten().unique()) > 7900  # states differ, although the expert acts alike in all
    assert torch.equal(noise, predict(ExpertCfg(noise=0.2), env, obs) - 0.1)
    assert not torch.equal(noise, predict(ExpertCfg(noise=0.2, seed=1), env, obs) - 0.1)
    assert not predict(ExpertCfg(), env, obs).ne(0.1).any()


def test_expert_policy__follows_the_expert_of_the_adapter(lone_env: GymVecEnv) -> None:
    """It moves a tenth of the way to its goal in each step: within 32 of it after at most 26 steps."""
    policy = make_base_policy(ID, None, lone_env)
    obs, _ = lone_env.reset(seed=3)
    for _ in range(30):
        obs, _, terminated, _, info = lone_env.step(policy.act(obs))
        if terminated.all():
            break
    assert info["final_info"]["success_once"].all()
    assert int(info["final_info"]["episode_length"]) <= 26


def test_expert_cfg__wrong_settings_are_errors(env: GymVecEnv) -> None:
    with pytest.raises(ConfigError, match="bias must have 1 or 2 values, not 3"):
        make_base_policy(ID, ExpertCfg(bias=(0.0, 0.0, 0.0)), env)
    with pytest.raises(ConfigError, match="noise must be at least 0"):
        ExpertCfg(noise=-0.1)
    without = make_vec_env("gymnasium", 1, num_threads=1, **TOY)
    with pytest.raises(ConfigError, match=r"this env has no expert.*--adapter"):
        make_base_policy(ID, None, without)
    without.close()


def test_with_obs_keys__the_residual_does_not_observe_the_expert_twice(toy: dict[str, Any]) -> None:
    cfg = TrainCfg.default("gymnasium", ID)
    assert cfg.learner_id == "gated-sac"
    env = make_residual_env(replace_fields(cfg, {**toy, "noise": 0.1, "num_threads": 1}), 1)
    keys = with_obs_keys(cfg, env).learner.obs_keys
    env.close()
    assert "state" in keys
    assert "expert_action" not in keys
