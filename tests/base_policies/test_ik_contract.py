"""The base policy `ik` passes the contract tests of base policies, in ManiSkill envs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import base_policy_contract as contract
import pytest

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.base_policies.ik import IKCfg
from residual_rl.envs.maniskill.vec_env import ManiSkillVecEnv
from residual_rl.tasks.maniskill.config import ManiSkillCfg
from residual_rl.tasks.maniskill.factory import make
from residual_rl.types import Obs

pytestmark = pytest.mark.maniskill

ID = "ik"
ConfigOf = Callable[[str], IKCfg]


@pytest.fixture(scope="module")
def env() -> Iterator[ManiSkillVecEnv]:
    made = make(
        ManiSkillCfg(env_id="PickCube-v1", control_mode="pd_joint_delta_pos"), contract.NUM_ENVS, 1, "cpu"
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def lone_env(env: ManiSkillVecEnv) -> Iterator[ManiSkillVecEnv]:
    made = make(ManiSkillCfg(env_id="PickCube-v1", control_mode=env.control_mode), 1, 1, "cpu")
    yield made
    made.close()


@pytest.fixture(scope="module")
def seen(env: ManiSkillVecEnv) -> list[Obs]:
    """Observations of 60 steps, in which cubes are reached, grasped and moved."""
    return contract.observations_of(make_base_policy(ID, None, env), env)


@pytest.fixture(scope="module")
def settings() -> ConfigOf:
    return lambda _: IKCfg()


def test_base_policy__returns_a_bounded_action_for_each_env(
    settings: ConfigOf, env: ManiSkillVecEnv, seen: list[Obs]
) -> None:
    contract.test_base_policy__returns_a_bounded_action_for_each_env(ID, settings, env, seen)


def test_base_policy__instances_agree_and_share_no_state(
    settings: ConfigOf, env: ManiSkillVecEnv, seen: list[Obs]
) -> None:
    contract.test_base_policy__instances_agree_and_share_no_state(ID, settings, env, seen)


@pytest.mark.parametrize("env_id", [0, 2])
def test_base_policy__actions_of_an_env_do_not_depend_on_other_envs(
    settings: ConfigOf, env_id: int, env: ManiSkillVecEnv, lone_env: ManiSkillVecEnv, seen: list[Obs]
) -> None:
    contract.test_base_policy__actions_of_an_env_do_not_depend_on_other_envs(
        ID, settings, env_id, env, lone_env, seen
    )


def test_base_policy_reset__affects_only_the_envs_of_the_mask(
    settings: ConfigOf, env: ManiSkillVecEnv, seen: list[Obs]
) -> None:
    contract.test_base_policy_reset__affects_only_the_envs_of_the_mask(ID, settings, env, seen)


@pytest.mark.parametrize(("end", "env_id"), [(10, 0), (18, 3), (26, 1), (40, 2)])
def test_base_policy__query_for_a_final_observation_affects_only_its_env(
    settings: ConfigOf, end: int, env_id: int, env: ManiSkillVecEnv, seen: list[Obs]
) -> None:
    contract.test_base_policy__query_for_a_final_observation_affects_only_its_env(
        ID, settings, end, env_id, env, seen
    )


def test_base_policy_state_dict__resumes_bit_for_bit(
    settings: ConfigOf, env: ManiSkillVecEnv, seen: list[Obs]
) -> None:
    contract.test_base_policy_state_dict__resumes_bit_for_bit(ID, settings, env, seen)


def test_base_policy_inputs__are_the_only_observations_it_reads(
    settings: ConfigOf, env: ManiSkillVecEnv, seen: list[Obs]
) -> None:
    contract.test_base_policy_inputs__are_the_only_observations_it_reads(ID, settings, env, seen)


def test_base_policy_inputs__must_be_observations_of_the_env(settings: ConfigOf) -> None:
    contract.test_base_policy_inputs__must_be_observations_of_the_env(ID, settings)
