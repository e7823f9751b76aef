"""The named arrays of an env's observation. Loaded by path in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

STATE = "state"
EXPERT = "expert_action"
_RESERVED = (STATE, EXPERT, "base_action", "base_chunk", "chunk_position", "elapsed_steps")
_WITHOUT_NUMBERS = ("Text", "Sequence", "Graph", "OneOf")
"""Names of spaces without a fixed number of entries; older versions of Gymnasium lack some of them."""
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Leaf:
    """One entry of a nested observation."""

    name: str
    """Its keys, joined by underscores."""
    path: tuple[Any, ...]
    """Its keys and indices."""
    space: spaces.Space[Any]

    @property
    def has_numbers(self) -> bool:
        """Whether it becomes an array."""
        return type(self.space).__name__ not in _WITHOUT_NUMBERS

    @property
    def is_image(self) -> bool:
        """Whether it becomes a uint8 image [H, W, C]."""
        return self.space.dtype == np.uint8 and len(self.space.shape or ()) in (2, 3)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of its array: [H, W, C] for images, [n] for numbers."""
        if self.is_image:
            return as_image(np.zeros(self.space.shape or (), np.uint8)).shape
        return (spaces.flatdim(self.space),)

    def convert(self, obs: Any) -> NDArray[Any]:
        """Its array in an observation: uint8 for images, float32 for numbers, one-hot for categories."""
        for key in self.path:
            obs = obs[key]
        if self.is_image:
            return as_image(np.asarray(obs, np.uint8))
        if isinstance(self.space, spaces.Box):
            return np.asarray(obs, np.float32).ravel()
        return np.asarray(spaces.flatten(self.space, obs), np.float32)


def as_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`image` as [H, W, C], from [H, W] or [C, H, W] too."""
    if image.ndim == 2:
        return image[..., None]
    if image.shape[0] in _CHANNELS and image.shape[2] not in _CHANNELS:
        return image.transpose(1, 2, 0)
    return image


class Observations:
    """The named arrays of an observation, and `state` [O]: all numbers side by side.

    A single entry named `state` stays what it is. Other entries whose names have a meaning elsewhere get the
    prefix `env_`.

    Args:
        space: the env's observation space.
    """

    def __init__(self, space: spaces.Space[Any]):
        found = list(_leaves(space, (), ""))
        self.ignored = [leaf.name for leaf in found if not leaf.has_numbers]
        """Entries that are neither images nor numbers."""
        self._leaves = [leaf for leaf in found if leaf.has_numbers]
        self.numbers = [leaf for leaf in self._leaves if not leaf.is_image]
        """The entries that make up `state`, in its order."""
        is_state = len(self.numbers) == 1 and self.numbers[0].name in ("", STATE)
        self._is_flat = is_state and len(self._leaves) == 1
        self.named = {
            (f"env_{leaf.name}" if leaf.name in _RESERVED else leaf.name) or "image": leaf
            for leaf in self._leaves
            if leaf.is_image or not is_state
        }
        """The entries by the name of their array, without `state`."""

    def layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array by name."""
        size = sum(leaf.shape[0] for leaf in self.numbers)
        layout = {STATE: ((size,), "float32")} if size else {}
        return layout | {
            name: (leaf.shape, "uint8" if leaf.is_image else "float32") for name, leaf in self.named.items()
        }

    def __call__(self, obs: Any) -> dict[str, NDArray[Any]]:
        """The arrays by name."""
        if self._is_flat:  # the usual case, without what follows
            return {STATE: self.numbers[0].convert(obs)}
        arrays = {leaf.path: leaf.convert(obs) for leaf in self._leaves}
        named = {name: arrays[leaf.path] for name, leaf in self.named.items()}
        if self.numbers:
            parts = [arrays[leaf.path] for leaf in self.numbers]
            named[STATE] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return named


def _leaves(space: spaces.Space[Any], path: tuple[Any, ...], name: str) -> Iterator[Leaf]:
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from _leaves(inner, (*path, key), f"{name}_{key}" if name else str(key))
    elif isinstance(space, spaces.Tuple):
        for i, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, i), f"{name or 'obs'}_{i}")
    else:
        yield Leaf(name, path, space)


def space_of(value: Any) -> spaces.Space[Any]:
    """The space of an observation that an adapter has made: unbounded numbers, or images if it is uint8."""
    if isinstance(value, dict):
        return spaces.Dict({key: space_of(inner) for key, inner in value.items()})
    if isinstance(value, tuple):
        return spaces.Tuple([space_of(inner) for inner in value])
    array = np.asarray(value)
    if array.dtype == np.uint8:
        return spaces.Box(0, 255, array.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, array.shape, np.float32)
