"""Interventions as demonstrations, and updates in pieces."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_runs import different
from toy_env import OBS_SPACE, TIMED_OBS_SPACE, PointMass, collect

from residual_rl.errors import ConfigError
from residual_rl.learners.off_policy.config import GatedSACCfg, SACCfg
from residual_rl.learners.off_policy.gated_sac import GatedSAC
from residual_rl.learners.off_policy.sac import SAC
from residual_rl.types import Transition

SMALL = SACCfg(
    hidden_sizes=(8,),
    batch_size=8,
    learning_starts=0,
    actor_starts=0,
    buffer_size=64,
    n_step=3,
)


def steps(learner: SAC, commanded: list[bool], rewards: list[float] | None = None) -> list[Transition]:
    """Steps of one env, of which a person commands some; their rewards are 1, 2, 3, … unless given."""
    env, given = PointMass(1, seed=0), []
    for i, by_person in enumerate(commanded):
        transition = env.step(learner.act(env.obs()))
        ended = torch.zeros(1, dtype=torch.bool)
        reward = torch.tensor([float(i + 1) if rewards is None else rewards[i]])
        given.append(
            dataclasses.replace(
                transition,
                reward=reward,
                terminated=ended,
                truncated=ended,
                success=ended,
                intervention=torch.tensor([by_person]),
                effective_scale=1.0,
                next_effective_scale=1.0,
            )
        )
        learner.observe(given[-1])
    return given


def test_collect_interventions__windows_end_where_the_person_hands_back() -> None:
    """Steps 2, 3 and 5 of 1 to 6, with n = 3, γ = 0.5 and rewards of the same numbers: 2 + 0.5 · 3 and 3 end
    at step 3, and 5 at step 5."""
    cfg = dataclasses.replace(SMALL, gamma=0.5, reward_scale=1.0)
    learner = SAC(cfg, OBS_SPACE, 2, 1)
    learner.collect_interventions()
    given = steps(learner, [False, True, True, False, True, False])
    demos = learner.demonstrations
    assert demos is not None
    sample = demos.gather(torch.arange(3), 3, 0.5, "truncated")
    assert sample.n_step_return.tolist() == [3.5, 3.0, 5.0]
    assert sample.discount.tolist() == [0.25, 0.5, 0.5]
    last = torch.stack([given[i].next_obs["state"][0] for i in (2, 2, 4)])
    assert torch.equal(sample.next_obs, last)
    # the replay buffer has all steps, and its windows go on
    own = learner.buffer.gather(torch.arange(3), 3, 0.5, "truncated")
    assert own.n_step_return.tolist() == [1 + 1 + 0.75, 2 + 1.5 + 1, 3 + 2 + 1.25]


def test_collect_interventions__a_share_of_the_batches_once_there_are_some() -> None:
    learner = SAC(dataclasses.replace(SMALL, demo_share=0.5, reward_scale=1.0, n_step=1), OBS_SPACE, 2, 1)
    learner.collect_interventions()
    steps(learner, [False] * 4, rewards=[0.0] * 4)
    assert learner._sample(1)[4].tolist() == [[0.0] * 8]
    steps(learner, [True], rewards=[7.0])
    returns = learner._sample(1)[4][0]
    assert returns[4:].tolist() == [7.0] * 4  # n_step_return of the demonstrations


def test_collect_interventions__are_added_to_loaded_demonstrations_and_restored() -> None:
    learner, other = (SAC(SMALL, OBS_SPACE, 2, 1) for _ in range(2))
    env = PointMass(3, seed=1)
    truncated = torch.tensor([False, False, True])
    step = env.step(torch.zeros(3, 2))
    episode = dataclasses.replace(step, truncated=truncated, effective_scale=1.0, next_effective_scale=1.0)
    learner.load_demonstrations([episode])
    learner.collect_interventions()
    steps(learner, [True, True])
    assert learner.demonstrations is not None
    assert learner.demonstrations.num_written == 5
    other.collect_interventions()
    other.load_state_dict(learner.state_dict())
    for one in (learner, other):
        steps(one, [True])
        one.update()
    assert different(learner.state_dict(), other.state_dict()) == []


def test_collect_interventions__refuses_settings_that_would_misread_them() -> None:
    with pytest.raises(ConfigError, match="set num_envs to 1, not 2"):
        SAC(SMALL, OBS_SPACE, 2, 2).collect_interventions()
    never = dataclasses.replace(SMALL, bootstrap_at_done="never")
    with pytest.raises(ConfigError, match="choose --bootstrap-at-done truncated"):
        SAC(never, OBS_SPACE, 2, 1).collect_interventions()
    residuals = dataclasses.replace(SMALL, critic_input="res")
    with pytest.raises(ConfigError, match="choose --critic-input sum"):
        SAC(residuals, OBS_SPACE, 2, 1).collect_interventions()


def test_update_max_steps__pieces_are_the_same_updates() -> None:
    cfg = dataclasses.replace(SMALL, critic_input="res")  # the toy env reports no residual scale
    whole, parts = (SAC(cfg, OBS_SPACE, 2, 1) for _ in range(2))
    for learner in (whole, parts):
        env = PointMass(1, seed=0)
        for _ in range(40):
            collect(learner, env)
    assert parts.updates_due == 40
    parts.update(max_steps=16)
    assert parts.updates_due == 24
    parts.update(max_steps=16)
    parts.update(max_steps=16)
    assert parts.updates_due == 0
    whole.update()
    assert different(whole.state_dict(), parts.state_dict()) == []


def test_gated_sac__an_intervention_is_no_outcome_of_the_base() -> None:
    """In the warm-up the base acts alone, and the outcome of each of its episodes is a label."""
    cfg = GatedSACCfg(hidden_sizes=(8,), batch_size=8, buffer_size=64)
    for commanded, labelled in ((False, 1), (True, 0)):
        learner = GatedSAC(cfg, TIMED_OBS_SPACE, 2, 1)
        learner.collect_interventions()
        env = PointMass(1, seed=0)
        for i in range(4):
            transition = env.step(learner.act(env.obs()))
            end = torch.tensor([i == 3])
            flag = torch.tensor([commanded and i == 1])
            changed = {"terminated": ~end & end, "truncated": end, "success": ~end & end}
            scales = {"effective_scale": 0.5, "next_effective_scale": 0.5}
            learner.observe(dataclasses.replace(transition, intervention=flag, **changed, **scales))
        assert sum(learner.gate_trainer.num_episodes) == labelled
