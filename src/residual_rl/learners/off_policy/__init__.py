"""Off-policy learners: SAC, TD3, and the published settings of Policy Decorator."""

from residual_rl.registry import LearnerSpec, register_learner

_CONFIG = "residual_rl.learners.off_policy.config"
_QUICK = {"learning_starts": 256, "warmup_steps": 512, "actor_starts": 512, "num_steps": 4, "utd": 0.5}
"""Settings for the short runs of `train --quick`."""
_LOGGING = {"log_freq": 500}
"""Updates are only a few env steps apart, so that a row of metrics for each would be slow and long."""

register_learner(
    LearnerSpec(
        id="sac",
        summary="soft actor-critic with a replay buffer: few samples, sparse rewards",
        config=f"{_CONFIG}:SACCfg",
        make="residual_rl.learners.off_policy.sac:SAC",
        make_policy="residual_rl.learners.off_policy.sac:make_policy",
        quick_overrides=_QUICK,
        train_overrides=_LOGGING,
    )
)
register_learner(
    LearnerSpec(
        id="gated-sac",
        summary="SAC that only acts where the base policy is expected to fail: learned bases",
        config=f"{_CONFIG}:GatedSACCfg",
        make="residual_rl.learners.off_policy.gated_sac:GatedSAC",
        make_policy="residual_rl.learners.off_policy.gated_sac:make_policy",
        quick_overrides=_QUICK | {"gate_warmup_episodes": 8, "gate_min_failures": 0, "gate_fit_steps": 200},
        train_overrides=_LOGGING
        | {
            "num_envs": 16,
            "residual_scale": 1.0,
            "total_timesteps": 60_000,
            "eval_freq": 10_000,
            "eval_episodes": 100,
        },
    )
)
register_learner(
    LearnerSpec(
        id="policy-decorator",
        summary="SAC with the settings of Policy Decorator (Yuan et al., 2025)",
        config=f"{_CONFIG}:PolicyDecoratorCfg",
        make="residual_rl.learners.off_policy.sac:SAC",
        make_policy="residual_rl.learners.off_policy.sac:make_policy",
        quick_overrides=_QUICK | {"batch_size": 256},
        train_overrides=_LOGGING
        | {"num_envs": 16, "chunk": "whole", "residual_scale": 0.1, "residual_penalty": 0.0},
        published=True,
    )
)
register_learner(
    LearnerSpec(
        id="td3",
        summary="twin delayed DDPG: a deterministic residual with a replay buffer",
        config=f"{_CONFIG}:TD3Cfg",
        make="residual_rl.learners.off_policy.td3:TD3",
        make_policy="residual_rl.learners.off_policy.td3:make_policy",
        quick_overrides=_QUICK,
        train_overrides=_LOGGING,
    )
)
