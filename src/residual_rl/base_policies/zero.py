"""The base policy that does nothing: with it, and a residual scale of 1, the toolkit does plain reinforcement learning."""

from __future__ import annotations

from residual_rl.registry import BasePolicySpec, register_base_policy

register_base_policy(
    BasePolicySpec(
        id="zero",
        summary="does nothing; with residual scale 1: plain RL",
        make="residual_rl.base_policies.zero_policy:make",
    )
)
