"""Episodes that start in a state of an earlier one."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.envs.start_states import StartStates
from residual_rl.factory import make_vec_env
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import BasePolicy, Obs

LIMIT = 12


class Chunks(BasePolicy):
    """Chunks of four actions, of which three are executed, from the last two joint positions."""

    inputs = {"joint_position": (6,)}  # noqa: RUF012
    chunk_size, num_action_steps, num_obs_steps = 4, 3, 2

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        old, new = obs["joint_position"].unbind(1)
        return torch.stack([0.2 * (k + 1) * new.sin() + 3.0 * (new - old) for k in range(4)], 1)


def make(share: float) -> ResidualEnv:
    env = make_vec_env("so101-paper", 3, num_threads=1, max_episode_steps=LIMIT)
    residual_env = ResidualEnv(env, BasePolicyExecutor(Chunks(), env), 0.5, penalty=0.1, chunk_obs=True)
    residual_env.start_states = StartStates(share, seed=0, least=1)
    residual_env.reset(seed=3)
    return residual_env


def residual(env_ids: list[int], step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return (2.0 * torch.rand(3, 6, generator=generator) - 1.0)[env_ids]


def test_keep__an_episode_goes_on_from_the_state_in_every_env() -> None:
    env = make(share=1.0)
    kept: Obs = {}
    later = []
    for step in range(LIMIT):
        if step == 7:  # in the middle of a chunk
            env.keep(torch.tensor([False, True, False]))
            kept = dict(env.obs)
        transition, info = env.step(residual([0, 1, 2], step))
        assert not info["restarted"].any()
        if step >= 7:
            later.append((transition.next_obs, transition.reward, info["final_info"]["episode_return"]))
    # all episodes have ended, and the next ones start where env 1 was at step 7
    for name, value in env.obs.items():
        assert torch.equal(value, kept[name][[1, 1, 1]]), name
    assert env.restarted.all()
    for step in range(7, LIMIT):
        transition, info = env.step(residual([1, 1, 1], step))
        obs, reward, episode_return = later[step - 7]
        assert info["restarted"].all()
        assert torch.equal(transition.reward, reward[[1, 1, 1]])
        assert torch.equal(info["final_info"]["episode_return"], episode_return[[1, 1, 1]])
        for name, value in transition.next_obs.items():
            assert torch.equal(value, obs[name][[1, 1, 1]]), (step, name)
    assert transition.truncated.all()


def test_keep__share_0_starts_all_episodes_as_the_task_says() -> None:
    env = make(share=0.0)
    env.keep(torch.tensor([True, True, True]))
    for step in range(LIMIT):
        env.step(residual([0, 1, 2], step))
    assert not env.restarted.any()
    assert env.obs["elapsed_steps"].flatten().tolist() == [0.0, 0.0, 0.0]


def test_load_state_dict__episodes_from_kept_states_resume_bit_for_bit() -> None:
    env, other = make(share=0.7), make(share=0.7)
    for step in range(LIMIT + 3):
        if step == 5:
            env.keep(torch.tensor([True, False, True]))
        env.step(residual([0, 1, 2], step))
    assert env.restarted.any()
    other.load_state_dict(env.state_dict())
    for step in range(2 * LIMIT):
        mine, theirs = env.step(residual([0, 1, 2], step))[0], other.step(residual([0, 1, 2], step))[0]
        for name, value in mine.next_obs.items():
            assert torch.equal(value, theirs.next_obs[name]), (step, name)
        assert torch.equal(env.restarted, other.restarted)
