"""What the tasks for Gymnasium envs have in common."""

from __future__ import annotations

from typing import Any

from residual_rl.registry import TaskSpec

_PACKAGE = "residual_rl.tasks.gymnasium"


def env_task(**fields: Any) -> TaskSpec:
    """The registration of a task whose settings are `GymnasiumCfg`, with the given fields of `TaskSpec`."""
    return TaskSpec(
        config=f"{_PACKAGE}.config:GymnasiumCfg",
        oracle="expert",
        oracle_success=0.5,  # an expert from elsewhere need not be perfect
        demo_settings=(
            "env_id",
            "env_kwargs",
            "adapter",
            "success_keys",
            "success_reward",
            "end_at_success",
            "reward_mode",
        ),
        foreign_demo="residual_rl.demos.gymnasium_demos:adapt",
        # sparse rewards need a learner that reuses its data
        learner="sac",
        train_overrides={"num_envs": 16},
        variant="reward_mode",
        learner_overrides=f"{_PACKAGE}.learner_defaults:overrides",
        **fields,
    )
