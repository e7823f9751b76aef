"""Published settings for the SO-101 tasks, in this package's names."""

from __future__ import annotations

from residual_rl.registry import Preset

_GUIDE = (
    "SO-101 residual RL guide (github.com/hafnium49/lerobot_lohpaul9: TRAINING_GUIDE.md and "
    "train_so101_residual.py)"
)

PRESETS = (
    Preset(
        name="so101-guide",
        source=_GUIDE,
        base_policy="zero",
        settings={
            # residual: alpha and penalty
            "residual_scale": 0.7,
            "residual_penalty": 0.001,
            # PPO of Stable-Baselines3
            "num_envs": 4,
            "num_steps": 256,
            "minibatch_size": 64,
            "num_epochs": 10,
            "learning_rate": 3e-4,
            "learning_rate_schedule": "constant",
            "gamma": 0.99,
            "gae_lambda": 0.95,
            "clip_range": 0.2,
            "entropy_coef": 0.005,
            "value_coef": 0.5,
            "max_grad_norm": 0.5,
            "hidden_sizes": (128, 128),
            "activation": "tanh",
            "init_std": 1.0,
            "final_std": None,
            "normalize_obs": False,
            "normalize_reward": False,
            "noise_correlation": 0.0,
            # amounts
            "total_timesteps": 500_000,
        },
    ),
)
