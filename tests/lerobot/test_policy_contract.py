"""ACT and Diffusion policies of LeRobot satisfy the contract of base policies."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import base_policy_contract as contract
import pytest
from base_policy_contract import env as env
from base_policy_contract import lone_env as lone_env
from base_policy_contract import seen as seen
from lerobot_case import make_case

from residual_rl.base_policies.lerobot import LeRobotCfg
from residual_rl.envs.vec_env import VecEnv
from residual_rl.types import Obs

pytestmark = pytest.mark.lerobot

ID = "lerobot"
ConfigOf = Callable[[str], LeRobotCfg]


@functools.cache
def _case(folder: Path, kind: str) -> LeRobotCfg:
    return make_case(folder, kind)


@pytest.fixture(scope="module", params=["act", "diffusion"])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    cfg = _case(tmp_path_factory.mktemp(request.param), request.param)
    return lambda _: cfg


def test_base_policy__returns_a_bounded_action_for_each_env(
    settings: ConfigOf, env: VecEnv, seen: list[Obs]
) -> None:
    contract.test_base_policy__returns_a_bounded_action_for_each_env(ID, settings, env, seen)


def test_base_policy__instances_agree_and_share_no_state(
    settings: ConfigOf, env: VecEnv, seen: list[Obs]
) -> None:
    contract.test_base_policy__instances_agree_and_share_no_state(ID, settings, env, seen)


@pytest.mark.parametrize("env_id", [0, 2])
def test_base_policy__actions_of_an_env_do_not_depend_on_other_envs(
    settings: ConfigOf, env_id: int, env: VecEnv, lone_env: VecEnv, seen: list[Obs]
) -> None:
    contract.test_base_policy__actions_of_an_env_do_not_depend_on_other_envs(
        ID, settings, env_id, env, lone_env, seen
    )


def test_base_policy_reset__affects_only_the_envs_of_the_mask(
    settings: ConfigOf, env: VecEnv, seen: list[Obs]
) -> None:
    contract.test_base_policy_reset__affects_only_the_envs_of_the_mask(ID, settings, env, seen)


@pytest.mark.parametrize(("end", "env_id"), [(10, 0), (18, 3), (26, 1), (40, 2)])
def test_base_policy__query_for_a_final_observation_affects_only_its_env(
    settings: ConfigOf, end: int, env_id: int, env: VecEnv, seen: list[Obs]
) -> None:
    contract.test_base_policy__query_for_a_final_observation_affects_only_its_env(
        ID, settings, end, env_id, env, seen
    )


def test_base_policy_state_dict__resumes_bit_for_bit(
    settings: ConfigOf, env: VecEnv, seen: list[Obs]
) -> None:
    contract.test_base_policy_state_dict__resumes_bit_for_bit(ID, settings, env, seen)


def test_base_policy_inputs__are_the_only_observations_it_reads(
    settings: ConfigOf, env: VecEnv, seen: list[Obs]
) -> None:
    contract.test_base_policy_inputs__are_the_only_observations_it_reads(ID, settings, env, seen)


def test_base_policy_inputs__must_be_observations_of_the_env(settings: ConfigOf) -> None:
    contract.test_base_policy_inputs__must_be_observations_of_the_env(ID, settings)
