"""Reader of Minari's datasets: a folder `data/` with `main_data.hdf5` and its description `metadata.json`.

`main_data.hdf5` has a group `episode_<i>` per episode of T steps: `observations` (an array [T + 1, …], or a
group of arrays for nested spaces), `actions` [T, A] in the env's own units, `rewards`, `terminations`,
`truncations` [T], and `infos` [T + 1] or [T]. `metadata.json` has the spaces and Gymnasium's description of the
env, of which the id alone is used. Source: https://minari.farama.org/content/dataset_standards
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from residual_rl.demos.episode import Array, Demo
from residual_rl.demos.foreign import STATE, ForeignFile, numbered
from residual_rl.demos.hdf5 import Hdf5File
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.utils.files import parse_json
from residual_rl.utils.text import one_line

DATA_FILE, METADATA_FILE = "main_data.hdf5", "metadata.json"
SUCCESS_KEYS = ("success", "is_success", "succeed", "solved", "goal_achieved")
"""Entries of `infos` that report success; the first one is used."""
_IMAGE_SIDE = 32
"""Smallest height and width of what Minari stores as encoded images."""


def data_file(path: Path) -> Path:
    """The HDF5 file of the dataset in the folder `path`.

    Raises `CheckpointError` if there is none, and `ConfigError` for a LeRobot dataset.
    """
    if (path / "meta" / "info.json").exists():
        raise ConfigError(
            f"{path} is a LeRobot dataset: convert it with `residual-rl demos from-lerobot {path} --task TASK "
            "--output FILE`"
        )
    folder = path / "data" if (path / "data").is_dir() else path
    if not (folder / DATA_FILE).is_file():
        raise CheckpointError(
            f"{path} is a folder without data/{DATA_FILE}; expected a file of demonstrations, or a dataset of "
            "Minari in its format hdf5"
        )
    return folder / DATA_FILE


class MinariFile(ForeignFile):
    """A dataset of Minari.

    Raises:
        CheckpointError: `metadata.json` is missing or does not match the file.
        ConfigError: the actions are not a bounded box.
    """

    program = "Minari"

    def __init__(self, path: Path, file: Hdf5File, folder: Path):
        super().__init__(path, file)
        metadata, side = _metadata(folder)
        try:
            spec = parse_json(metadata["env_spec"]) if "env_spec" in metadata else {}
            action_space = _space(metadata["action_space"])
            encoded = bool(metadata.get("jpeg_encoding", True))
            leaves = list(_leaves(_space(metadata["observation_space"])))
            self._observed = {name: path for name, path, space in leaves if not (encoded and _is_image(space))}
            self._low, self._high = (np.array(action_space[key], np.float64) for key in ("low", "high"))
            env_id = str(spec.get("id", "unknown"))
            limit = spec.get("max_episode_steps")
            total = int(metadata["total_episodes"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{side} cannot be read ({one_line(repr(error))}); expected the description of a Minari dataset "
                "with continuous actions"
            ) from error
        bounded = self._low.shape == self._high.shape and self._low.ndim == 1 and self._low.size
        if not bounded or not (np.isfinite([self._low, self._high]).all() and (self._low < self._high).all()):
            raise ConfigError(f"{path} has actions without bounds, which cannot be scaled to [-1, 1]")
        self.names = numbered(file.names(), "episode_")
        count = len(self.names)
        if not count or count != total or self.names[-1] != f"episode_{count - 1}":
            raise CheckpointError(
                f"{side} lists {total} episodes, but {path} has {count}; use an intact copy"
            )
        self.task_settings = {"env_id": env_id} if "id" in spec else {}
        attributes = [file.attributes(name) for name in self.names]
        self.info = {
            "env_info": {"env_id": env_id, "env_kwargs": {}, "max_episode_steps": limit},
            "source_type": "minari",
            "source_desc": one_line(f"Minari dataset {metadata.get('dataset_id', 'without a name')}"),
            "episodes": [
                {
                    "episode_id": i,
                    "episode_seed": found["seed"] if isinstance(found.get("seed"), int) else None,
                    "elapsed_steps": found.get("total_steps"),
                }
                for i, found in enumerate(attributes)
            ],
        }

    def observations(self, index: int) -> dict[str, str]:
        return self._observed

    def episode(self, index: int, obs: Collection[str] | None) -> Demo:
        flags = [self.read(index, name).astype(bool) for name in ("terminations", "truncations")]
        return Demo(
            actions=self._normalized(self.read(index, "actions")),
            obs=self.read_observations(index, obs, lambda name: self.read(index, name)),
            terminated=flags[0],
            truncated=flags[1],
            rewards=self.read(index, "rewards").astype(np.float32),
            success=self._success(index, len(flags[0])),
            seed=self.info["episodes"][index]["episode_seed"],
        )

    def _normalized(self, actions: Array) -> Array:
        """Actions [T, A] in [-1, 1]; an env clips those out of its bounds."""
        if actions.ndim != 2 or actions.shape[1:] != self._low.shape:
            raise ValueError(f"actions of shape {list(actions.shape)}, expected [T, {len(self._low)}]")
        middle, half = (self._high + self._low) / 2, (self._high - self._low) / 2
        return np.clip((actions - middle) / half, -1.0, 1.0).astype(np.float32)

    def _success(self, index: int, steps: int) -> Array | None:
        """Success after each step, if `infos` has it."""
        arrays = self.file.shapes(self.names[index])
        name = next((key for key in SUCCESS_KEYS if f"infos/{key}" in arrays), None)
        if name is None:
            return None
        values = self.read(index, f"infos/{name}")
        if values.size not in (steps, steps + 1):
            raise ValueError(f"infos/{name} of shape {list(values.shape)}, expected [{steps}]")
        return values.reshape(-1)[-steps:].astype(bool)


def _metadata(folder: Path) -> tuple[dict[str, Any], Path]:
    """The content of `metadata.json`, and its path."""
    side = folder / METADATA_FILE
    try:
        metadata = parse_json(side.read_text(encoding="utf-8"))
        if not isinstance(metadata, dict):
            raise ValueError("it is no object")
    except FileNotFoundError:
        raise CheckpointError(
            f"{side} is missing: Minari, from version 0.5 on, describes {DATA_FILE} there"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{side} cannot be read ({one_line(error)}); expected the description of a Minari dataset"
        ) from error
    return metadata, side


def _space(text: str) -> dict[str, Any]:
    """A serialised space. Its bounds may be infinite, which Python's JSON allows."""
    space: dict[str, Any] = json.loads(text)
    return space


def _leaves(
    space: dict[str, Any], name: str = "", path: str = "observations"
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The name, the path and the space of each array of an observation space."""
    nested = space.get("subspaces")
    if nested is None:
        yield name or STATE, path, space
        return
    parts = {f"_index_{i}": part for i, part in enumerate(nested)} if isinstance(nested, list) else nested
    for key, part in parts.items():
        short = key.removeprefix("_index_") if isinstance(nested, list) else key
        yield from _leaves(part, f"{name}_{short}" if name else short, f"{path}/{key}")


def _is_image(space: dict[str, Any]) -> bool:
    """Whether Minari encodes the arrays of `space` as JPEG images, which are not read here."""
    shape = space.get("shape", [])
    return space.get("dtype") == "uint8" and len(shape) in (2, 3) and min(shape[:2]) >= _IMAGE_SIDE
