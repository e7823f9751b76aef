"""Demonstrations of another program in a Gymnasium env, with the reward and the end of our settings."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from residual_rl.demos.episode import Demo
from residual_rl.envs.gymnasium.config import GymnasiumEnvCfg
from residual_rl.errors import ConfigError


def adapt(cfg: GymnasiumEnvCfg, demo: Demo) -> Demo:
    """`demo` as `GymVecEnv` would have recorded it with the settings `cfg`.

    Success is what the file says, or a reward of at least `success_reward`. With `end_at_success`, the
    episode terminates at its first success. The sparse reward is 1 in steps with success.

    Raises:
        ConfigError: the reward is sparse, and success is unknown.
    """
    # success
    success = demo.success
    if success is None and demo.rewards is not None and cfg.success_reward is not None:
        success = demo.rewards >= cfg.success_reward
    if cfg.reward_mode == "sparse":
        if success is None:
            raise ConfigError(
                "success is not recorded, which the sparse reward is made of: choose --reward-mode env, or "
                "name the reward of success with --success-reward"
            )
        demo = dataclasses.replace(demo, rewards=success.astype(np.float32))
    demo = dataclasses.replace(demo, success=success)
    # the end
    if success is None or not success.any() or not cfg.end_at_success:
        return demo
    steps = int(success.argmax()) + 1
    cut: dict[str, Any] = {
        field.name: value[:steps]
        for field in dataclasses.fields(demo)
        if isinstance(value := getattr(demo, field.name), np.ndarray)
    }
    ends = np.arange(steps) == steps - 1
    cut |= {"terminated": ends, "truncated": np.zeros_like(ends)}
    if demo.intended_actions is demo.actions:
        cut["intended_actions"] = cut["actions"]
    return dataclasses.replace(demo, obs={k: v[: steps + 1] for k, v in demo.obs.items()}, **cut)
