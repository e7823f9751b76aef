"""From a base policy's id and settings to the policy in its executor: what builds runs uses it, and base policies that hold others."""

from __future__ import annotations

from typing import Any

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.registry import BASE_POLICIES, load


def make_base_policy(base_policy_id: str, cfg: Any, env: VecEnv, name: str | None = None) -> BasePolicyExecutor:
    """A fresh base policy for `env`, in its executor. `cfg` None means its defaults; `name` is what errors call it."""
    spec = BASE_POLICIES.get(base_policy_id)
    name = name or f"base policy {base_policy_id!r}"
    try:
        policy = load(spec.make)(spec.default_config() if cfg is None else cfg, env)
    except (ConfigError, CheckpointError) as error:
        raise type(error)(f"{name}: {error}") from error
    return BasePolicyExecutor(policy, env, name)
