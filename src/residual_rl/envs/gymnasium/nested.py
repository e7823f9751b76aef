"""Nested observations of Gymnasium envs: dicts and tuples of NumPy arrays or torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces import flatten_space
from torch import Tensor

from residual_rl.errors import ConfigError


def row(obs: Any, index: int) -> Any:
    """The element `index` of nested dicts and tuples of arrays [b, …]."""
    if isinstance(obs, dict):
        return {name: row(value, index) for name, value in obs.items()}
    if isinstance(obs, tuple):
        return tuple(row(value, index) for value in obs)
    return obs[index]


def map_arrays(function: Callable[[Any], Any], obs: Any) -> Any:
    """Apply `function` to the arrays in nested dicts and tuples."""
    if isinstance(obs, dict):
        return {name: map_arrays(function, value) for name, value in obs.items()}
    return tuple(map_arrays(function, value) for value in obs) if isinstance(obs, tuple) else function(obs)


def batch_of_one(obs: Any) -> Any:
    """The observation of one env as a batch [1, …]."""
    return map_arrays(lambda value: (value if isinstance(value, Tensor) else np.asarray(value))[None], obs)


def as_arrays(obs: Any) -> Any:
    """`obs` with NumPy arrays instead of tensors."""
    return map_arrays(lambda value: value.cpu().numpy() if isinstance(value, Tensor) else value, obs)


def first_array(obs: Any) -> Any:
    """The first array in `obs`."""
    while isinstance(obs, dict | tuple):
        obs = next(iter(obs.values())) if isinstance(obs, dict) else obs[0]
    return obs


def stack(rows: Sequence[Any]) -> Any:
    """Observations of single envs as a batch."""
    first = rows[0]
    if isinstance(first, dict):
        return {name: stack([one[name] for one in rows]) for name in first}
    if isinstance(first, tuple):
        return tuple(stack(parts) for parts in zip(*rows, strict=True))
    return torch.stack(list(rows)) if isinstance(first, Tensor) else np.stack(rows)


def flat_space(space: spaces.Space[Any]) -> spaces.Box:
    """The space of the vector that `leaves` of an observation become side by side."""
    for leaf in leaves(space, space):
        if not isinstance(leaf, spaces.Box | spaces.MultiBinary):
            raise ConfigError(
                f"flatten cannot convert {leaf}: use gymnasium.wrappers.FlattenObservation on the env first"
            )
    flat = flatten_space(space)
    assert isinstance(flat, spaces.Box)
    return flat


def leaves(space: spaces.Space[Any], obs: Any) -> list[Any]:
    """The arrays in `obs`, in the order of `space`."""
    if isinstance(space, spaces.Dict):
        return [leaf for name, inner in space.spaces.items() for leaf in leaves(inner, obs[name])]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, inner in enumerate(space.spaces) for leaf in leaves(inner, obs[i])]
    return [obs]
