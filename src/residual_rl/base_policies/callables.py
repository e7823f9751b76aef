"""Policies that are plain Python callables, `policy(obs) -> action`: found by name, called and reset."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from residual_rl.envs.gymnasium.nested import row
from residual_rl.errors import BasePolicyError, ConfigError
from residual_rl.types import State


def load_callable(reference: str, setting: str) -> Callable[..., Any]:
    """Import the callable `MODULE:NAME`, the value of `setting`. Raises `ConfigError` if there is none."""
    module, _, name = reference.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{setting} must be MODULE:FUNCTION that Python can import, not {reference!r}: {error}; "
            "for a module in the current folder set PYTHONPATH=."
        ) from error
    if not callable(found):
        kind = type(found).__name__
        raise ConfigError(f"{setting} must be the name of a function; {reference!r} is a {kind}")
    called: Callable[..., Any] = found
    return called


class CallablePolicy:
    """A callable `policy(obs) -> action` for B envs, which is queried for any of them.

    Without `batched`, it is called for one env at a time, and `policy.reset()`, if it exists, is called at
    the start of an episode. A class is instantiated once for each env, so that each env has its own state.

    With `batched`, it is called with the observations of b envs, [b, …]. A policy with state has
    `policy.reset(mask)`, with a mask [B] bool of the envs that start an episode, and is called as
    `policy(obs, env_ids)`, with the indices [b] of the envs. A class is instantiated once.

    Args:
        policy: the callable, or a class of such callables that takes no arguments.
        num_envs: B.
        batched: whether `policy` takes a batch.
        name: name of the policy in error messages.

    Raises:
        ConfigError: the policy has state that would be mixed up between envs.
    """

    def __init__(self, policy: Callable[..., Any], num_envs: int, batched: bool, name: str):
        self.batched = batched
        self._name = name
        copies = 1 if batched or not inspect.isclass(policy) else num_envs
        self._policies: list[Any] = [policy() if inspect.isclass(policy) else policy for _ in range(copies)]
        first = self._policies[0]
        if not callable(first):
            raise ConfigError(f"{name} cannot be called: it needs a method __call__(obs)")
        self._has_state = callable(getattr(first, "reset", None))
        self._takes_env_ids = batched and "env_ids" in _parameters(first)
        if self._has_state and not batched and copies < num_envs:
            raise ConfigError(
                f"{name} has a reset, so it keeps the state of one episode, and there are {num_envs} envs:"
                " give its class, which is then instantiated for each env, or a batched policy"
            )

    def check_queries_of_some(self) -> None:
        """Raise `ConfigError` for a policy that can only be queried for all envs at once: it keeps state but
        takes no `env_ids`."""
        if self.batched and self._has_state and not self._takes_env_ids:
            raise ConfigError(
                f"{self._name} has a reset, so it keeps state, and is queried for some of the envs at a time:"
                " it must take their indices, as policy(obs, env_ids)"
            )

    def reset(self, mask: Any) -> None:
        """Start a new episode in the envs of `mask` [B] bool, an array or a tensor."""
        if not self._has_state:
            return
        if self.batched:
            self._policies[0].reset(mask)
            return
        for policy, begins in zip(self._policies, mask.tolist(), strict=True):
            if begins:
                policy.reset()

    def state_dicts(self) -> list[State]:
        """The state of each policy, or nothing if they have no `state_dict`."""
        return [
            copy.deepcopy(policy.state_dict()) for policy in self._policies if hasattr(policy, "state_dict")
        ]

    def load_state_dicts(self, states: Sequence[State]) -> bool:
        """Restore `state_dicts()`. Returns whether nothing is lost: False for policies that have state but no
        `state_dict`."""
        for policy, state in zip(self._policies, states, strict=False):
            policy.load_state_dict(state)
        return bool(states) or not self._has_state

    def __call__(self, obs: Any, env_ids: Any) -> Tensor:
        """The actions [b, …] float64 for `obs`, nested arrays or tensors [b, …], of the envs `env_ids` [b].

        Raises `BasePolicyError` if the policy returns no numbers.
        """
        if self.batched:
            return self._numbers(
                self._policies[0](obs, env_ids) if self._takes_env_ids else self._policies[0](obs)
            )
        rows = [
            self._numbers(self._policies[int(env_id) % len(self._policies)](row(obs, i)))
            for i, env_id in enumerate(env_ids)
        ]
        if len({action.shape for action in rows}) > 1:
            raise BasePolicyError(f"{self._name} gave actions of different shapes in one step")
        return torch.stack(rows)

    def _numbers(self, action: Any) -> Tensor:
        if isinstance(action, Tensor):
            return action.detach().double()
        with contextlib.suppress(ValueError):  # of lists of different lengths
            array = np.asarray(action)
            if array.dtype.kind in "fiu":
                return torch.as_tensor(array.astype(np.float64))
        kind = type(action).__name__
        raise BasePolicyError(f"{self._name} gave a {kind} that is not an action, an array of numbers")


def _parameters(function: Callable[..., Any]) -> Sequence[str]:
    """Names of the parameters of `function`; none for one without a signature."""
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ()
