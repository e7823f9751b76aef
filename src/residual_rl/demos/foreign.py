"""Demonstrations of programs that know none of our tasks: the common part of Minari's and robomimic's files.

Their observations have the names that the same env has here, with `state` for all numbers side by side; see
`envs.gymnasium.observations`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from residual_rl.demos.episode import Array, Demo
from residual_rl.envs.gymnasium.observations import STATE, Leaf, Observations, as_image
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.registry import TASKS, load

if TYPE_CHECKING:
    from residual_rl.config import TrainCfg
    from residual_rl.demos.hdf5 import Hdf5File, Shapes
    from residual_rl.demos.reader import Demonstrations


class ForeignFile(ABC):
    """A file of demonstrations that another program wrote.

    Methods raise `ValueError` and the exceptions of `Hdf5File` if the file is damaged.

    Args:
        path: its path, for messages.
        file: the open HDF5 file.
    """

    program: str
    """The program that wrote the file."""
    names: list[str]
    """The group of each episode."""
    info: dict[str, Any]
    """Its description, with the keys of `writer.describe` as far as they are known."""
    task_settings: Mapping[str, Any]
    """Settings of a task that the file determines."""
    observations: Observations
    """The observations of a step."""

    def __init__(self, path: Path, file: Hdf5File):
        self.path = path
        self.file = file

    @abstractmethod
    def episode(self, index: int, obs: Collection[str] | None) -> Demo:
        """Episode `index` with the observations `obs` (default: all)."""

    @abstractmethod
    def array_path(self, leaf: Leaf) -> str:
        """The path of an observation's array below the group of an episode."""

    def shapes(self) -> Shapes:
        """The shapes of one step's actions and observations, with the names of `Demo.shapes`."""
        actions = self.file.shapes(self.names[0]).get("actions")
        if actions is None:
            raise ValueError("it lacks actions")
        layout = self.observations.layout()
        return {
            "actions": (int(np.prod(actions[1:])),),
            **{f"obs/{name}": shape for name, (shape, _) in layout.items()},
        }

    def read(self, index: int, name: str) -> Array:
        """The array `name` of an episode."""
        return self.file.read(f"{self.names[index]}/{name}")

    def read_observations(
        self, wanted: Collection[str] | None, read: Callable[[str], Array]
    ) -> dict[str, Array]:
        """The observations `wanted` (default: all) of an episode by name, [T + 1, …] each.

        Args:
            wanted: names of observations.
            read: returns an array of the episode.

        Raises:
            UnknownNameError: the file does not have one of them.
        """
        known = self.observations.layout()
        for name in wanted or ():
            if name not in known:
                raise UnknownNameError(f"observation of {self.path}:", name, known)
        arrays: dict[str, Array] = {}

        def column(leaf: Leaf) -> Array:
            path = self.array_path(leaf)
            if path not in arrays:
                arrays[path] = _converted(read(path), leaf, path)
            return arrays[path]

        found: dict[str, Array] = {}
        for name in known if wanted is None else wanted:
            if name == STATE:
                found[name] = np.concatenate([column(leaf) for leaf in self.observations.numbers], axis=1)
            else:
                found[name] = column(self.observations.named[name])
        return found


def _converted(value: Array, leaf: Leaf, path: str) -> Array:
    """The array of an observation over the steps of an episode, as `Leaf.convert` makes it of each."""
    if value.shape[1:] != (leaf.space.shape or ()):
        raise ValueError(f"{path} has shape {list(value.shape)}, expected [T, {leaf.space.shape}]")
    if leaf.is_image:
        return np.stack([as_image(image) for image in value])
    if isinstance(leaf.space, spaces.Box):
        return value.reshape(len(value), -1).astype(np.float32)
    return np.stack([np.asarray(spaces.flatten(leaf.space, row), np.float32) for row in value])


def episode_in_task(demos: Demonstrations, index: int, obs: Collection[str] | None, cfg: TrainCfg) -> Demo:
    """Episode `index` of `demos` with the observations `obs`. One of another program has the reward and the
    end that the task of `cfg` defines.

    Raises `ConfigError` if it lacks what the task's reward depends on.
    """
    demo = demos.episode(index, obs)
    return (
        demo
        if demos.names_task
        else demo_in_task(demo, cfg.task_id, cfg.task, f"{demos.path}: episode {index}")
    )


def demo_in_task(demo: Demo, task_id: str, task: Any, name: str) -> Demo:
    """`demo` of another program, with the reward and the end that the settings `task` of a task define.

    Raises `ConfigError`, with the name of the demonstration, if it lacks what the task's reward depends on.
    """
    adapt = TASKS.get(task_id).foreign_demo
    if adapt is None:
        return demo
    try:
        adapted: Demo = load(adapt)(task, demo)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    return adapted


def numbered(names: Collection[str], prefix: str) -> list[str]:
    """Those of `names` that are `prefix` and a number, in the order of the numbers."""
    found = [name for name in names if re.fullmatch(rf"{prefix}(0|[1-9]\d{{0,8}})", name)]
    return sorted(found, key=lambda name: int(name.removeprefix(prefix)))
