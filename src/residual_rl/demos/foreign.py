"""Demonstrations of programs that know none of our tasks: the common part of Minari's and robomimic's files.

Their observations keep their names, with underscores between the names of nested ones, as in `envs.gymnasium`.
`state`, if there is none of that name, is all of them except images side by side, as float32.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from residual_rl.demos.episode import Array, Demo
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.registry import TASKS, load

if TYPE_CHECKING:
    from residual_rl.config import TrainCfg
    from residual_rl.demos.hdf5 import Hdf5File, Shapes
    from residual_rl.demos.reader import Demonstrations

STATE = "state"
_IMAGE_DIMENSIONS = 3


class ForeignFile(ABC):
    """A file of demonstrations that another program wrote.

    Methods raise `ValueError`, `KeyError` and the exceptions of `Hdf5File` if the file is damaged.

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

    def __init__(self, path: Path, file: Hdf5File):
        self.path = path
        self.file = file

    @abstractmethod
    def observations(self, index: int) -> dict[str, str]:
        """The path of each observation below the group of episode `index`, by name."""

    @abstractmethod
    def episode(self, index: int, obs: Collection[str] | None) -> Demo:
        """Episode `index` with the observations `obs` (default: all)."""

    def shapes(self, index: int) -> Shapes:
        """The shapes of one step's actions and observations in an episode, with the names of `Demo.shapes`."""
        arrays = self.arrays(index)
        steps = {name: arrays[path][1:] for name, path in self.observations(index).items()}
        if STATE not in steps:
            parts = [steps[name] for name in _parts(steps)]
            steps |= {STATE: (sum(int(np.prod(shape)) for shape in parts),)} if parts else {}
        return {"actions": arrays["actions"][1:], **{f"obs/{name}": steps[name] for name in sorted(steps)}}

    def arrays(self, index: int) -> Shapes:
        """The shape of each array of an episode by path. Raises `ValueError` if one is missing."""
        found = self.file.shapes(self.names[index])
        missing = [name for name in ("actions", *self.observations(index).values()) if name not in found]
        if missing:
            raise ValueError(f"it lacks {missing[0]}")
        return found

    def read(self, index: int, name: str) -> Array:
        """The array `name` of an episode."""
        return self.file.read(f"{self.names[index]}/{name}")

    def read_observations(
        self, index: int, wanted: Collection[str] | None, read: Callable[[str], Array]
    ) -> dict[str, Array]:
        """The observations `wanted` (default: all) of an episode, by name.

        Args:
            index: the episode.
            wanted: names of observations.
            read: returns an array of the episode.

        Raises:
            UnknownNameError: the file does not have one of them.
        """
        paths, arrays = self.observations(index), self.arrays(index)
        parts = [] if STATE in paths else _parts({name: arrays[path][1:] for name, path in paths.items()})
        known = [*paths, *([STATE] if parts else [])]
        for name in wanted or ():
            if name not in known:
                raise UnknownNameError(f"observation of {self.path}:", name, known)
        chosen = [name for name in known if wanted is None or name in wanted]
        needed = dict.fromkeys([*chosen, *(parts if STATE in chosen else [])])
        found = {name: _numbers(read(paths[name])) for name in needed if name in paths}
        if parts and STATE in chosen:
            found[STATE] = np.concatenate([found[n].reshape(len(found[n]), -1) for n in parts], axis=1)
        return {name: found[name] for name in sorted(chosen)}


def episode_in_task(demos: Demonstrations, index: int, obs: Collection[str] | None, cfg: TrainCfg) -> Demo:
    """Episode `index` of `demos` with the observations `obs`, with the reward and the end that the task of `cfg`
    defines, if another program recorded it.

    Raises `ConfigError` if it lacks what the task's reward depends on.
    """
    demo = demos.episode(index, obs)
    adapt = TASKS.get(cfg.task_id).foreign_demo
    if demos.names_task or adapt is None:
        return demo
    try:
        adapted: Demo = load(adapt)(cfg.task, demo)
    except ConfigError as error:
        raise ConfigError(f"{demos.path}: episode {index}: {error}") from None
    return adapted


def numbered(names: Collection[str], prefix: str) -> list[str]:
    """Those of `names` that are `prefix` and a number, in the order of the numbers."""
    found = [name for name in names if re.fullmatch(rf"{prefix}(0|[1-9]\d{{0,8}})", name)]
    return sorted(found, key=lambda name: int(name.removeprefix(prefix)))


def _parts(steps: Shapes) -> list[str]:
    """The observations that make up `state`: all but images."""
    return [name for name, shape in steps.items() if len(shape) < _IMAGE_DIMENSIONS]


def _numbers(value: Array) -> Array:
    """Images as they are, everything else as float32."""
    if value.dtype == np.uint8 and value.ndim > _IMAGE_DIMENSIONS:
        return value
    return value.astype(np.float32)
