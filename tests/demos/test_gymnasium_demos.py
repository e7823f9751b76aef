"""The reward and the end that a task of a Gymnasium env gives demonstrations of other programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from demo_files import a_demo

from residual_rl.demos.episode import Demo
from residual_rl.demos.gymnasium_demos import adapt
from residual_rl.envs.gymnasium.config import GymnasiumEnvCfg
from residual_rl.errors import ConfigError

SUCCESS = np.array([False, True, True, False])
REWARDS = np.float32([0.5, 2.0, 3.0, 1.0])


def a_recorded_demo(**fields: Any) -> Demo:
    """Four steps, the second and third of which succeed; the episode is truncated at its end."""
    ends = np.arange(4) == 3
    flags = {"terminated": np.zeros(4, bool), "truncated": ends, "success": SUCCESS, "rewards": REWARDS}
    return a_demo(steps=4, **{**flags, **fields})


def test_adapt__ends_at_the_first_success_with_a_sparse_reward() -> None:
    demo = a_recorded_demo()
    found = adapt(GymnasiumEnvCfg(), demo)
    assert len(found) == 2
    assert found.rewards is not None
    assert found.rewards.tolist() == [0.0, 1.0]
    assert found.terminated.tolist() == [False, True]
    assert not found.truncated.any()
    np.testing.assert_array_equal(found.actions, demo.actions[:2])
    np.testing.assert_array_equal(found.obs["state"], demo.obs["state"][:3])
    assert found.intended_actions is found.actions
    assert found.problem() is None


def test_adapt__goes_on_after_success_with_the_reward_of_the_env() -> None:
    found = adapt(GymnasiumEnvCfg(end_at_success=False, reward_mode="env"), a_recorded_demo())
    assert found.rewards is not None
    assert found.rewards.tolist() == REWARDS.tolist()
    assert found.truncated.tolist() == [False, False, False, True]
    sparse = adapt(GymnasiumEnvCfg(end_at_success=False), a_recorded_demo()).rewards
    assert sparse is not None
    assert sparse.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_adapt__success_is_a_reward_of_at_least_success_reward() -> None:
    found = adapt(GymnasiumEnvCfg(success_reward=3.0), a_recorded_demo(success=None))
    assert found.success is not None
    assert found.success.tolist() == [False, False, True]


def test_adapt__a_sparse_reward_needs_success() -> None:
    with pytest.raises(ConfigError, match=r"success is not recorded, .* choose --reward-mode env"):
        adapt(GymnasiumEnvCfg(), a_recorded_demo(success=None))
    kept = adapt(GymnasiumEnvCfg(reward_mode="env"), a_recorded_demo(success=None))
    assert (len(kept), kept.success) == (4, None)
