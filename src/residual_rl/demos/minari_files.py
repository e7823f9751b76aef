"""Reader of Minari's datasets: a folder `data/` with `main_data.hdf5` and its description `metadata.json`.

`main_data.hdf5` has a group `episode_<i>` per episode of T steps: `observations` (an array [T + 1, …], or a
group of arrays for nested spaces), `actions` [T, A] in the env's own units, `rewards`, `terminations`,
`truncations` [T], and `infos` [T + 1] or [T]. `metadata.json` has the spaces and Gymnasium's description of
the env, of which only the id is used. Source: https://minari.farama.org/content/dataset_standards
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from residual_rl.demos.episode import Array, Demo
from residual_rl.demos.foreign import ForeignFile, numbered
from residual_rl.demos.hdf5 import Hdf5File
from residual_rl.envs.gymnasium.action_range import ActionRange
from residual_rl.envs.gymnasium.adapter import Adapter
from residual_rl.envs.gymnasium.observations import Leaf, Observations
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.utils.files import parse_json
from residual_rl.utils.text import one_line, shell_command

DATA_FILE, METADATA_FILE = "main_data.hdf5", "metadata.json"
_IMAGE_SIDE = 32
"""Smallest height and width of the images that Minari encodes."""


def data_file(path: Path) -> Path:
    """The HDF5 file of the dataset in the folder `path`.

    Raises `CheckpointError` if there is none, and `ConfigError` for a LeRobot dataset.
    """
    if (path / "meta" / "info.json").exists():
        command = shell_command("demos", "from-lerobot", path, "--task", "TASK", "--output", "FILE")
        raise ConfigError(f"{path} is a LeRobot dataset: convert it with `{command}`")
    folder = path / "data" if (path / "data").is_dir() else path
    if not (folder / DATA_FILE).is_file():
        raise CheckpointError(
            f"{path} is a folder without data/{DATA_FILE}; expected a file of demonstrations, or a dataset "
            "of Minari in its format hdf5"
        )
    return folder / DATA_FILE


class MinariFile(ForeignFile):
    """A dataset of Minari.

    Args:
        path: its path, for messages.
        file: the open HDF5 file.
        folder: the folder with `metadata.json`.

    Raises:
        CheckpointError: `metadata.json` is missing or does not match the file.
        ConfigError: the actions are not a bounded box.
    """

    program = "Minari"

    def __init__(self, path: Path, file: Hdf5File, folder: Path):
        super().__init__(path, file)
        # the description
        metadata, side = _metadata(folder)
        try:
            spec = parse_json(metadata["env_spec"]) if "env_spec" in metadata else {}
            actions = _space(json.loads(metadata["action_space"]), bounded=True)
            encoded = bool(metadata.get("jpeg_encoding", True))
            observed = _space(json.loads(metadata["observation_space"]), without_images=encoded)
            total, env_id = int(metadata["total_episodes"]), str(spec.get("id", "unknown"))
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
            raise CheckpointError(
                f"{side} cannot be read ({one_line(repr(error))}); expected the description of a dataset"
            ) from error
        try:
            self._actions = ActionRange(actions, f"{path}, of {one_line(env_id)},")
        except ValueError as error:
            raise ConfigError(one_line(error)) from None
        self.observations = Observations(observed)
        # the episodes
        self.names = numbered(file.names(), "episode_")
        count = len(self.names)
        if not count or count != total or self.names[-1] != f"episode_{count - 1}":
            raise CheckpointError(
                f"{side} lists {total} episodes, but {path} has {count}; use an intact copy"
            )
        attributes = [file.attributes(name) for name in self.names]
        # their description in our terms
        self.task_settings = {"env_id": env_id} if "id" in spec else {}
        self.info = {
            "env_info": {
                "env_id": env_id,
                "env_kwargs": {},
                "max_episode_steps": spec.get("max_episode_steps"),
            },
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

    def array_path(self, leaf: Leaf) -> str:
        keys = (f"_index_{key}" if isinstance(key, int) else key for key in leaf.path)
        return "/".join(("observations", *keys))

    def episode(self, index: int, obs: Collection[str] | None) -> Demo:
        terminated, truncated = (
            self.read(index, name).astype(bool) for name in ("terminations", "truncations")
        )
        return Demo(
            actions=self._normalised(self.read(index, "actions")),
            obs=self.read_observations(obs, lambda name: self.read(index, name)),
            terminated=terminated,
            truncated=truncated,
            rewards=self.read(index, "rewards").astype(np.float32),
            success=self._success(index, len(terminated)),
            seed=self.info["episodes"][index]["episode_seed"],
        )

    def _normalised(self, actions: Array) -> Array:
        """Actions [T, …] in the env's units as [T, A] in [-1, 1]."""
        flat = actions.reshape(len(actions), -1)
        if flat.shape[1] != len(self._actions.unit):
            raise ValueError(
                f"actions has shape {list(actions.shape)}, expected [T, {len(self._actions.unit)}]"
            )
        return np.clip((flat - self._actions.centre) / self._actions.unit, -1.0, 1.0).astype(np.float32)

    def _success(self, index: int, steps: int) -> Array | None:
        """Success after each step, if `infos` has it."""
        arrays = self.file.shapes(self.names[index])
        name = next((f"infos/{key}" for key in Adapter.success_keys if f"infos/{key}" in arrays), None)
        if name is None:
            return None
        values = self.read(index, name)
        if values.size not in (steps, steps + 1):
            raise ValueError(f"{name} has shape {list(values.shape)}, expected [{steps}]")
        return values.reshape(-1)[-steps:].astype(bool)


def _metadata(folder: Path) -> tuple[dict[str, Any], Path]:
    """The content of `metadata.json`, and its path."""
    side = folder / METADATA_FILE
    try:
        metadata = parse_json(side.read_text(encoding="utf-8"))
        if not isinstance(metadata, dict):
            raise ValueError("it is not an object")
    except FileNotFoundError:
        raise CheckpointError(
            f"{side} is missing: Minari, from version 0.5 on, describes {DATA_FILE} there"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{side} cannot be read ({one_line(error)}); expected the description of a Minari dataset"
        ) from error
    return metadata, side


def _space(
    serialised: dict[str, Any], *, bounded: bool = False, without_images: bool = False
) -> spaces.Space[Any]:
    """The space that Minari wrote as JSON.

    Boxes of numbers are unbounded, unless `bounded`. Texts, and with `without_images` what Minari stores as
    encoded images, become a text, which is no observation here.
    """
    kind = serialised["type"]
    if kind == "Dict":
        items = serialised["subspaces"].items()
        return spaces.Dict(OrderedDict((key, _space(s, without_images=without_images)) for key, s in items))
    if kind == "Tuple":
        return spaces.Tuple([_space(s, without_images=without_images) for s in serialised["subspaces"]])
    if kind == "Discrete":
        return spaces.Discrete(int(serialised["n"]), start=int(serialised["start"]))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(serialised["nvec"], np.int64))
    if kind == "MultiBinary":
        return spaces.MultiBinary(serialised["n"])
    if kind != "Box":
        return spaces.Text(1)
    low, high = (np.array(serialised[key], np.float64) for key in ("low", "high"))
    if bounded:
        return spaces.Box(low, high, dtype=np.float64)
    if serialised["dtype"] != "uint8" or low.ndim < 2:
        return spaces.Box(-np.inf, np.inf, low.shape)
    if without_images and low.ndim < 4 and min(low.shape[:2]) >= _IMAGE_SIDE:
        return spaces.Text(1)
    return spaces.Box(0, 255, low.shape, np.uint8)
