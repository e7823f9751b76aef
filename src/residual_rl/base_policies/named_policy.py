"""A base policy of this package in an env of another library."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.envs.gymnasium.nested import as_arrays, first_array, row, stack
from residual_rl.envs.gymnasium.normalised_actions import NormalisedActions
from residual_rl.envs.gymnasium.observations import Observations
from residual_rl.envs.spaces import array_space
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import UnknownNameError
from residual_rl.registry import BASE_POLICIES
from residual_rl.types import BasePolicy, Obs


class NamedPolicy:
    """A base policy of this package, which reads named observations.

    Args:
        policy: the base policy, or its id.
        settings: settings of a base policy that is given by its id.
        view: the env, or what the policy needs to know of it.

    Raises:
        ConfigError: the policy does not fit the env, or a setting is invalid.
    """

    batched = True

    def __init__(self, policy: BasePolicy | str, settings: Mapping[str, Any] | None, view: VecEnv):
        self._view = view
        if isinstance(policy, BasePolicy):
            self._executor = BasePolicyExecutor(policy, view, f"base policy {type(policy).__name__}")
        else:
            cfg = BASE_POLICIES.get(policy).default_config()
            known = [] if cfg is None else [field.name for field in dataclasses.fields(cfg)]
            for name in settings or {}:
                if name not in known:
                    raise UnknownNameError(f"setting of base policy {policy!r}", name, known)
            cfg = dataclasses.replace(cfg, **settings) if settings else cfg
            self._executor = make_base_policy(policy, cfg, view)
        self.name = self._executor.name

    def reset(self, mask: Any) -> None:
        """Start a new episode in the envs of `mask` [B] bool."""
        self._executor.reset(torch.as_tensor(mask, device=self._view.device))

    def __call__(self, obs: Any, env_ids: Any) -> Tensor:
        """The normalised base actions [b, A] for `obs` [b, …] of the envs `env_ids` [b]."""
        named = self._view.named(obs) if isinstance(self._view, EnvView) else obs
        return self._executor.act_rows(named, torch.as_tensor(env_ids, device=self._view.device)).double()


class EnvView(VecEnv):
    """What a base policy of this package needs to know of an env of another library; it cannot be stepped.

    The names of observations are those of `GymVecEnv`.

    Args:
        obs_space: the observation space of one env.
        actions: its actions.
        num_envs: B.
    """

    action_unit_name = "env unit"

    def __init__(self, obs_space: spaces.Space[Any], actions: NormalisedActions, num_envs: int):
        self._observations = Observations(obs_space)
        self.num_envs, self.device = num_envs, actions.unit.device
        self.action_unit = actions.unit.float()
        layout = self._observations.layout()
        self._set_spaces(spaces.Dict({name: array_space(*entry) for name, entry in layout.items()}))

    def named(self, obs: Any) -> Obs:
        """The named observations [b, …] of `obs`, nested arrays or tensors [b, …]."""
        arrays = as_arrays(obs)
        rows = [self._observations(row(arrays, i)) for i in range(len(first_array(arrays)))]
        return {name: torch.from_numpy(value).to(self.device) for name, value in stack(rows).items()}
