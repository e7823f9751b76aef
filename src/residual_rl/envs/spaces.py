"""An env's observation space by name, and the observations needed to convert its actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from residual_rl.envs.vec_env import VecEnv

CHUNK_OBS = ("base_chunk", "chunk_position")
"""What a residual policy can observe of the base policy's current chunk, beside `base_action`."""
BASE_OBS = ("base_action", "elapsed_steps", *CHUNK_OBS)
"""The observations of a residual policy that do not come from the env."""
EXPERT_ACTION = "expert_action"
"""The action [A] of an env's scripted expert, which the base policy `expert` executes. What is learned does
not observe it by default: a residual has `base_action`, and an imitation of the expert would copy it."""


def observed(env: VecEnv) -> Mapping[str, spaces.Space[Any]]:
    """The observation spaces of `env` by name, without the batch."""
    assert isinstance(env.single_observation_space, spaces.Dict)
    return env.single_observation_space.spaces


def shape_of(env: VecEnv, name: str) -> tuple[int, ...]:
    """The shape of the observation `name` of `env`, without the batch."""
    return tuple(observed(env)[name].shape or ())


def array_space(shape: tuple[int, ...], dtype: str) -> spaces.Space[Any]:
    """The space of an array of an observation: an image if `dtype` is uint8, otherwise unbounded numbers."""
    if dtype == "uint8":
        return spaces.Box(0, 255, shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def is_image(space: Any) -> bool:
    """Whether `space` is that of a camera image: uint8 [H, W, C]."""
    return getattr(space, "dtype", None) == "uint8" and len(space.shape) == 3


def conversion_inputs(env: VecEnv) -> tuple[str, ...]:
    """The observations that `env` needs to convert joint targets to actions and back.

    Empty if the actions are absolute joint targets. They are found by converting without observations: the
    `KeyError` names the missing one. Raises `ConfigError` if the actions do not command joint targets.
    """
    try:
        env.actions_to_targets(torch.zeros(1, 1, len(env.action_unit), device=env.device), {})
    except KeyError as missing:
        return (str(missing.args[0]),)
    return ()


def with_base_action(env: VecEnv, chunk_steps: int | None = None) -> spaces.Dict:
    """A residual policy's observation space: the env's observations, `base_action` [A], and `elapsed_steps`
    [1], the steps since the start of the episode.

    With `chunk_steps` n, also `base_chunk` [n·A] and `chunk_position` [1] of a base policy that executes n
    actions of each chunk.
    """
    known = {**observed(env), "base_action": env.single_action_space}
    known["elapsed_steps"] = spaces.Box(0.0, np.inf, (1,), np.float32)
    if chunk_steps is not None:
        known["base_chunk"] = spaces.Box(-1.0, 1.0, (chunk_steps * len(env.action_unit),), np.float32)
        known["chunk_position"] = spaces.Box(0.0, 1.0, (1,), np.float32)
    return spaces.Dict(known)
