"""Going back to earlier states of ManiSkill's CPU simulation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from env_contract import actions, flat

from residual_rl.envs.maniskill.vec_env import ManiSkillVecEnv
from residual_rl.tasks.maniskill.config import ManiSkillCfg
from residual_rl.tasks.maniskill.factory import make

pytestmark = pytest.mark.maniskill


@pytest.fixture
def env() -> Iterator[ManiSkillVecEnv]:
    env = make(ManiSkillCfg(env_id="PegInsertionSide-v1", max_episode_steps=30), 3, 2, "cpu")
    yield env
    env.close()


def test_restore__episodes_go_on_in_other_envs(env: ManiSkillVecEnv) -> None:
    env.reset(seed=5)
    for step in range(6):
        env.step(actions(env, step))
    sources, targets = torch.tensor([0, 2]), torch.tensor([1, 2])
    snapshot, before = env.snapshot(sources), env.observations()
    expected = [env.step(actions(env, step)) for step in range(6, 12)]
    env.reset(mask=torch.tensor([False, True, True]))
    env.step(actions(env, 20))
    obs = env.restore(targets, snapshot)
    # the peg's size is that of the episode, and everything is where it was
    for name, value in obs.items():
        torch.testing.assert_close(value[targets], before[name][sources], atol=1e-5, rtol=0.0)
    for step in range(6, 12):
        action = actions(env, step).index_copy(0, targets, actions(env, step)[sources])
        obs, reward, _, _, info = env.step(action)
        theirs = expected[step - 6]
        for name, value in obs.items():
            if "vel" not in name and name != "state":
                torch.testing.assert_close(value[targets], theirs[0][name][sources], atol=5e-3, rtol=0.0)
        torch.testing.assert_close(reward[targets], theirs[1][sources], atol=1e-2, rtol=0.0)
        lengths = info["final_info"]["episode_length"]
        assert torch.equal(lengths[targets], theirs[4]["final_info"]["episode_length"][sources])


def test_load_state_dict__restored_episodes_resume_bit_for_bit(env: ManiSkillVecEnv) -> None:
    env.reset(seed=5)
    for step in range(4):
        env.step(actions(env, step))
    snapshot = env.snapshot(torch.tensor([0]))
    for step in range(4, 7):
        env.step(actions(env, step))
    env.restore(torch.tensor([1]), snapshot)
    for step in range(7, 10):
        env.step(actions(env, step))
    state = env.state_dict()
    expected = [env.step(actions(env, step)) for step in range(10, 35)]  # beyond the ends of the episodes
    env.load_state_dict(state)
    for step in range(10, 35):
        mine, theirs = flat(env.step(actions(env, step))), flat(expected[step - 10])
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]), (step, name)
