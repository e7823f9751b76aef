"""The base policy `zero`: with it and a residual scale of 1, training is plain reinforcement learning."""

from __future__ import annotations

from residual_rl.registry import BasePolicySpec, register_base_policy

register_base_policy(
    BasePolicySpec(
        id="zero",
        summary="zero actions; with a residual scale of 1: plain RL",
        make="residual_rl.base_policies.zero_policy:make",
        train_overrides={"residual_scale": 1.0},
    )
)
