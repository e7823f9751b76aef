"""The base policy `ik` keeps the contract of base policies, in ManiSkill's worlds."""

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
    """Observations of 60 steps, with cubes that are reached, grasped and moved."""
    policy = make_base_policy(ID, None, env)
    obs, _ = env.reset(seed=900)
    observations = [obs]
    for _ in range(60):
        obs, *_ = env.step(policy.act(obs))
        observations.append(obs)
    return observations


@pytest.fixture(scope="module")
def settings() -> ConfigOf:
    return lambda _: IKCfg()


def test_gives_an_action_for_every_world(settings: ConfigOf, env: ManiSkillVecEnv, seen: list[Obs]) -> None:
    contract.test_gives_an_action_for_every_world(ID, settings, env, seen)


def test_instances_agree_and_share_no_state(
    settings: ConfigOf, env: ManiSkillVecEnv, seen: list[Obs]
) -> None:
    contract.test_instances_agree_and_share_no_state(ID, settings, env, seen)


@pytest.mark.parametrize("world", [0, 2])
def test_a_worlds_actions_do_not_depend_on_the_others(
    settings: ConfigOf, world: int, env: ManiSkillVecEnv, lone_env: ManiSkillVecEnv, seen: list[Obs]
) -> None:
    contract.test_a_worlds_actions_do_not_depend_on_the_others(ID, settings, world, env, lone_env, seen)


def test_reset_touches_the_worlds_of_the_mask_alone(
    settings: ConfigOf, env: ManiSkillVecEnv, seen: list[Obs]
) -> None:
    contract.test_reset_touches_the_worlds_of_the_mask_alone(ID, settings, env, seen)


@pytest.mark.parametrize(("end", "world"), [(10, 0), (18, 3), (26, 1), (40, 2)])
def test_a_final_observation_is_answered_for_its_world_alone(
    settings: ConfigOf, end: int, world: int, env: ManiSkillVecEnv, seen: list[Obs]
) -> None:
    contract.test_a_final_observation_is_answered_for_its_world_alone(ID, settings, end, world, env, seen)


def test_a_saved_state_goes_on_bit_for_bit(settings: ConfigOf, env: ManiSkillVecEnv, seen: list[Obs]) -> None:
    contract.test_a_saved_state_goes_on_bit_for_bit(ID, settings, env, seen)


def test_reads_what_it_declares_and_nothing_else(
    settings: ConfigOf, env: ManiSkillVecEnv, seen: list[Obs]
) -> None:
    contract.test_reads_what_it_declares_and_nothing_else(ID, settings, env, seen)


def test_an_env_without_its_inputs_is_refused(settings: ConfigOf) -> None:
    contract.test_an_env_without_its_inputs_is_refused(ID, settings)
