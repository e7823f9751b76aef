"""The base actions in envs of other libraries: queries of any kind of base policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from torch import Tensor

from residual_rl.base_policies.callables import CallablePolicy
from residual_rl.base_policies.named_policy import EnvView, NamedPolicy
from residual_rl.envs.gymnasium.nested import first_array, map_arrays
from residual_rl.envs.gymnasium.normalised_actions import NormalisedActions
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, ConfigError
from residual_rl.types import BasePolicy, check_finite

BasePolicyLike = BasePolicy | str | Callable[..., Any]
"""A base policy of this package, its id, or a callable `policy(obs) -> action`."""


class BaseActions:
    """The base actions for the current observations of B envs of another library.

    Observations are nested NumPy arrays or torch tensors, with the batch in front.

    Args:
        env: the env or vector env.
        space: the observation space of one env.
        action_space: the action space of one env.
        num_envs: B.
        base_policy: the base policy; a callable acts in the env's units.
        batched: whether a callable takes a batch, see `CallablePolicy`.
        settings: settings of a base policy that is given by its id.

    Raises:
        ConfigError: an argument is invalid, or the spaces are not supported.
    """

    def __init__(
        self,
        env: Any,
        space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        num_envs: int,
        base_policy: BasePolicyLike,
        batched: bool,
        settings: Mapping[str, Any] | None,
    ):
        # The actions.
        self.device = torch.device(getattr(env, "device", None) or "cpu")
        """Device of all tensors."""
        self.actions = NormalisedActions(action_space, self.device)
        self.shape = (num_envs, *self.actions.space.shape)
        """Shape of the actions of all envs."""
        self._all_envs = torch.arange(num_envs, device=self.device)
        self._obs_device: torch.device | None = None
        """Device of the observations; None: they are NumPy arrays."""
        self._current: Tensor | None = None

        # The policy.
        if settings is not None and not isinstance(base_policy, str):
            raise ConfigError("base_settings are for a base policy that is given by its id")
        self._policy: NamedPolicy | CallablePolicy
        if isinstance(base_policy, str | BasePolicy):
            view = env if isinstance(env, VecEnv) else EnvView(space, self.actions, num_envs)  # type: ignore[abstract]
            self._policy = NamedPolicy(base_policy, settings, view)
            self._name = self._policy.name
            return
        if not callable(base_policy):
            raise ConfigError(
                "base_policy must be a base policy, the id of one, or a callable policy(obs) -> action, not a"
                f" {type(base_policy).__name__}"
            )
        self._name = getattr(base_policy, "__name__", type(base_policy).__name__)
        self._policy = CallablePolicy(base_policy, num_envs, batched, self._name)

    @property
    def current(self) -> Tensor:
        """[B, A] float64: the normalised base actions. Raises Gymnasium's `ResetNeeded` before a reset."""
        if self._current is None:
            raise ResetNeeded("there is no episode in progress: call reset() first")
        return self._current

    def check_queries_of_some(self) -> None:
        """Raise `ConfigError` for a policy that can only be queried for all envs at once."""
        if isinstance(self._policy, CallablePolicy):
            self._policy.check_queries_of_some()

    def reset(self, obs: Any, mask: Tensor | None = None) -> None:
        """Start episodes, with the observations `obs`, in the envs of `mask` [B] bool (None: all)."""
        leaf = first_array(obs)
        self._obs_device = leaf.device if isinstance(leaf, Tensor) else None
        if mask is None or self._current is None:
            shape = (len(self._all_envs), len(self.actions.unit))
            self._current = torch.zeros(shape, dtype=torch.float64, device=self.device)
            mask = torch.ones_like(self._all_envs, dtype=torch.bool)
        self.reset_policy(mask)
        if mask.all():
            self.query(obs)
        else:
            self.query(map_arrays(lambda value: value[self.like_obs(mask)], obs), mask.nonzero().flatten())

    def reset_policy(self, mask: Tensor) -> None:
        """Reset the base policy in the envs of `mask` [B] bool."""
        if mask.any():
            self._policy.reset(self.like_obs(mask))

    def query(self, obs: Any, env_ids: Tensor | None = None) -> None:
        """Query the base policy for the observations `obs` [b, …] of the envs `env_ids` [b] (None: all)."""
        ids = self._all_envs if env_ids is None else env_ids
        found = self._policy(obs, self.like_obs(ids)).to(self.device)
        self._check_shape(tuple(found.shape), len(ids))
        check_finite(f"the base action of {self._name}", found)
        found = found.flatten(1)
        if isinstance(self._policy, CallablePolicy):
            found = self.actions.normalise(found)
        self._current = self.current.index_copy(0, ids, found)

    def _check_shape(self, shape: tuple[int, ...], num_rows: int) -> None:
        """Raise `BasePolicyError` unless `shape` is that of actions for `num_rows` envs."""
        expected = (num_rows, *self.shape[1:])
        if shape in (expected, (num_rows, len(self.actions.unit))):
            return
        if self._policy.batched:
            raise BasePolicyError(f"{self._name} gave actions of shape {shape}; expected {expected}")
        raise BasePolicyError(
            f"{self._name} gave an action of shape {shape[1:]}; expected {expected[1:]}"
            " (batched=True for a policy of batches)"
        )

    def observed(self, actions: Tensor) -> Any:
        """Normalised actions [B, A] as float32 [B, …], like observations."""
        return self.like_obs(actions.float().reshape(self.shape))

    def like_obs(self, value: Tensor) -> Any:
        """`value` as a NumPy array, or as a tensor on the device of the observations."""
        return value.cpu().numpy() if self._obs_device is None else value.to(self._obs_device)

    def mask(self, value: Any) -> Tensor:
        """`value` [B], an array or tensor, as a mask on `device`."""
        return torch.as_tensor(value, dtype=torch.bool, device=self.device)
