"""The observation statistics with which PPO acts and learns."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import different
from toy_env import OBS_SPACE

from residual_rl.learners.ppo.ppo import PPO, PPOCfg
from residual_rl.types import Transition

SETTINGS = {"num_steps": 8, "minibatch_size": 32, "num_epochs": 1, "hidden_sizes": (16, 16)}
"""One gradient step in an update of four envs."""


def rollout(learner: PPO, generator: torch.Generator, offset: float) -> None:
    """Eight steps of random observations around `offset`."""
    for _ in range(8):
        obs, next_obs = (
            {name: offset + torch.randn(4, *shape, generator=generator) for name, shape in OBS_SPACE.items()}
            for _ in range(2)
        )
        action = learner.act(obs)
        reward = action.sum(1) + torch.randn(4, generator=generator)
        ended = torch.zeros(4, dtype=torch.bool)
        learner.observe(Transition(obs, action, reward, ended, ended, next_obs, action, action))


@pytest.mark.parametrize("critic_obs_keys", [None, ("state",)])
def test_ppo__first_gradient_step_of_each_update_has_a_ratio_of_one(
    critic_obs_keys: tuple[str, ...] | None,
) -> None:
    cfg = PPOCfg(**SETTINGS, learning_rate=0.05, critic_obs_keys=critic_obs_keys)  # type: ignore[arg-type]
    learner = PPO(cfg, OBS_SPACE, 2, 4)
    generator = torch.Generator().manual_seed(0)
    for offset in (0.0, 3.0, -5.0):
        rollout(learner, generator, offset)
        metrics = learner.update()
        assert metrics["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)
        assert metrics["train/clip_fraction"] == 0.0
    mean_of = learner.policy.mean_of({name: torch.ones(1, *shape) for name, shape in OBS_SPACE.items()}, {})
    assert mean_of.abs().max() > 0.1  # the policy depends on the observation by now


def test_ppo__rollout_enters_the_statistics_at_the_end_of_its_update() -> None:
    learner = PPO(PPOCfg(**SETTINGS), OBS_SPACE, 2, 4)  # type: ignore[arg-type]
    normalizer = learner.policy.normalizer
    assert normalizer is not None
    generator = torch.Generator().manual_seed(0)
    for number, offset in enumerate((0.0, 3.0), start=1):
        rollout(learner, generator, offset)
        learner.update()
        assert normalizer.count.item() == pytest.approx(number * 32, abs=1e-3)
        torch.testing.assert_close(normalizer._shift, normalizer.mean.float())
    assert normalizer.mean.mean().item() == pytest.approx(1.5, abs=0.2)
    # What is applied is what a restored learner applies
    restored = PPO(PPOCfg(**SETTINGS), OBS_SPACE, 2, 4, seed=1)  # type: ignore[arg-type]
    restored.load_state_dict(learner.state_dict())
    assert different(restored.state_dict(), learner.state_dict()) == []
    assert restored.policy.normalizer is not None
    assert torch.equal(restored.policy.normalizer._shift, normalizer._shift)
