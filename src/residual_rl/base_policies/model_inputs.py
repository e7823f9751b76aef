"""Inputs of models of other libraries: named observations joined into a vector, with checks that they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.types import BasePolicy, Obs
from residual_rl.utils.text import one_line


def join_inputs(obs: Obs, keys: Sequence[str]) -> Tensor:
    """The observations `keys`, flattened and joined: float32 [b, O]."""
    return torch.cat([obs[key].float().flatten(1) for key in keys], 1)


def input_shapes(keys: Sequence[str], space: Any, name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the observations `keys`. Raises `ConfigError` for one that is not in `space`, the dict of an
    env's observations."""
    observed: Mapping[str, Any] = space.spaces
    for key in keys:
        if key not in observed:
            raise ConfigError(
                f"{name} needs the observation {key!r}; the env has {', '.join(sorted(observed))}"
            )
    return {key: tuple(observed[key].shape) for key in keys}


FIX_INPUTS = "choose other --base.input-keys, or another model"
"""The end of an error about the observations of a base policy."""


def check_size(
    inputs: Mapping[str, tuple[int, ...]], wanted: tuple[int, ...], name: str, fix: str = FIX_INPUTS
) -> None:
    """Raise `ConfigError`, which ends with `fix`, unless the joined `inputs` have the shape `wanted`."""
    size = sum(torch.Size(shape).numel() for shape in inputs.values())
    if wanted != (size,):
        given = " + ".join(f"{key} {shape}" for key, shape in inputs.items())
        raise ConfigError(f"{name} observes {wanted}; this env gives it {(size,)}, {given}: {fix}")


def check_actions(space: Any, num_actions: int, name: str) -> None:
    """Raise `ConfigError` unless `space` is that of `num_actions` actions in [-1, 1]."""
    wanted = (num_actions,)
    if not isinstance(space, spaces.Box) or space.shape != wanted:
        raise ConfigError(f"{name} acts in {space}; this env takes actions Box(-1.0, 1.0, {wanted})")
    if (space.low != -1.0).any() or (space.high != 1.0).any():
        raise ConfigError(
            f"{name} acts in {space}; this env's actions are from -1 to 1: train it with that range"
        )


def probe(policy: BasePolicy, env: VecEnv, name: str) -> Tensor:
    """The policy's chunk [1, K, A] for an observation of zeros, so that a failure is found before training
    starts.

    Raises `ConfigError` if the policy fails.
    """
    observed: Mapping[str, Any] = env.single_observation_space.spaces  # type: ignore[attr-defined]
    zeros = {key: torch.from_numpy(np.zeros_like(observed[key].low))[None] for key in policy.inputs}
    try:
        chunk = policy.predict_action_chunk(zeros, torch.zeros(1, dtype=torch.int64))
    except Exception as error:
        reason = one_line(error)
        raise ConfigError(
            f"{name} cannot be run on this env's observations ({type(error).__name__}: {reason})"
        ) from error
    assert isinstance(chunk, Tensor)
    return chunk
