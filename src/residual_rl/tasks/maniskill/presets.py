"""Published settings for ManiSkill tasks, in this package's names.

They hold what the scripts set for learning. Devices are left to the flags: the scripts simulate and learn on
a GPU (`--sim-device cuda --device cuda`).
"""

from __future__ import annotations

import math
from typing import Any

from residual_rl.registry import Preset

_PPO: dict[str, Any] = {
    "num_steps": 50,
    "num_epochs": 4,
    "learning_rate": 3e-4,
    "learning_rate_schedule": "constant",
    "gamma": 0.8,
    "gae_lambda": 0.9,
    "clip_range": 0.2,
    "entropy_coef": 0.0,
    "value_coef": 0.5,
    "max_grad_norm": 0.5,
    "target_kl": 0.1,
    "bootstrap_at_done": "always",
    "hidden_sizes": (256, 256, 256),
    "activation": "tanh",
    "normalize_obs": False,
    "normalize_reward": False,
    "residual_scale": 1.0,
    "residual_penalty": 0.0,
    "control_mode": "pd_joint_delta_pos",
}
"""PPO in both scripts; their batches are divided into 32 minibatches."""

PRESETS = (
    Preset(
        name="expert-residual",
        source="Expert+Residual PPO scripts for ManiSkill: README and ppo_fast_expert_residual.py",
        base_policy="zero",
        settings={
            **_PPO,
            "env_id": "PickBox-v1",
            "robot_uids": "a1_galaxea",
            "num_envs": 1024,
            "minibatch_size": 1600,
            "init_std": 1.0,
            "total_timesteps": 100_000,
        },
    ),
    Preset(
        name="maniskill-ppo",
        source="ManiSkill 3, defaults of examples/baselines/ppo/ppo.py (github.com/haosulab/ManiSkill)",
        base_policy="zero",
        settings={
            **_PPO,
            "env_id": "PickCube-v1",
            "num_envs": 512,
            "minibatch_size": 800,
            "init_std": math.exp(-0.5),
            "total_timesteps": 10_000_000,
        },
    ),
)
