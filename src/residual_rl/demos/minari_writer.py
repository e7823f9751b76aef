"""Writer of Minari's datasets (see `demos.minari_files`), without Minari itself.

Actions are in the env's own units if the demonstrations know them (`action_centre`), and otherwise in [-1,
1]. Images are stored as they are, without compression to JPEG. The dataset does not describe the env.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces

from residual_rl.demos.episode import Array, Demo
from residual_rl.demos.minari_files import DATA_FILE, METADATA_FILE
from residual_rl.demos.reader import Demonstrations
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.utils.files import replacing_folder, write_json
from residual_rl.utils.validation import CheckedCfg, Names

MINARI_VERSION = "0.5.4"
"""The version of Minari whose format is written."""
_ID = re.compile(r"([-\w]+/)*[-\w]+-v\d+")


@dataclass(frozen=True)
class MinariCfg(CheckedCfg):
    """Settings of a dataset of Minari."""

    dataset_id: str = ""
    """Name of the dataset in Minari, with its version: NAME-v0, or NAMESPACE/NAME-v0."""
    obs_keys: Names = ("state",)
    """Observations to store. One becomes an array, several become a dict."""
    author: str = ""
    """Author of the dataset."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset_id and not _ID.fullmatch(self.dataset_id):
            raise ConfigError(
                f"dataset_id must be of the form NAMESPACE/NAME-v0, with or without a namespace, not "
                f"{self.dataset_id!r}"
            )


def datasets_folder() -> Path:
    """Minari's folder of datasets on this machine."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def write_minari(
    demos: Demonstrations, folder: Path, cfg: MinariCfg, on_progress: Callable[[int], None] = lambda _: None
) -> int:
    """Write `demos` as the dataset `cfg.dataset_id` to the new folder `folder`, atomically.

    Returns:
        The number of steps.

    Raises:
        ConfigError: the folder exists, or rewards are missing, which Minari needs.
        UnknownNameError: `demos` does not have an observation.
        WriteError: the folder cannot be written.
    """
    for name in cfg.obs_keys:
        if name not in demos.obs_shapes:
            raise UnknownNameError(f"observation of {demos.path}:", name, demos.obs_shapes)
    in_units = demos.own and "action_centre" in demos.info
    scale = [demos.info["action_unit"], demos.info["action_centre"]] if in_units else [1.0, 0.0]
    unit, centre = (np.broadcast_to(np.float32(value), (demos.action_dim,)) for value in scale)
    total = 0
    with replacing_folder(folder) as temp:
        (temp / "data").mkdir(parents=True)
        with h5py.File(temp / "data" / DATA_FILE, "w") as file:
            for index in range(len(demos)):
                demo = demos.episode(index, cfg.obs_keys)
                if demo.rewards is None:
                    raise ConfigError(f"{demos.path} has no rewards, which a dataset of Minari needs")
                observed = {name.replace("/", "_"): _storable(demo.obs[name]) for name in cfg.obs_keys}
                _add(
                    file.create_group(f"episode_{index}"), index, demo, observed, centre + unit * demo.actions
                )
                total += len(demo)
                on_progress(index + 1)
        parts = {name: _space(values) for name, values in observed.items()}
        space = next(iter(parts.values())) if len(parts) == 1 else {"type": "Dict", "subspaces": parts}
        metadata = {
            "total_episodes": len(demos),
            "total_steps": total,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "observation_space": json.dumps(space),
            "action_space": json.dumps(_box(spaces.Box(centre - unit, centre + unit))),
            "dataset_id": cfg.dataset_id,
            "algorithm_name": str(demos.info.get("source_desc") or ""),
            "author": [cfg.author] if cfg.author else [],
            "minari_version": MINARI_VERSION,
            "requirements": [],
        }
        write_json(temp / "data" / METADATA_FILE, metadata)
    return total


def _add(group: h5py.Group, index: int, demo: Demo, observed: dict[str, Array], actions: Array) -> None:
    """Write an episode with the observations `observed` and the env's own `actions`."""
    group.attrs["id"], group.attrs["total_steps"] = index, len(demo)
    if demo.seed is not None:
        group.attrs["seed"] = demo.seed
    for name, values in observed.items():
        group["observations" if len(observed) == 1 else f"observations/{name}"] = values
    group["actions"], group["rewards"] = actions, demo.rewards
    group["terminations"], group["truncations"] = demo.terminated, demo.truncated
    if demo.success is not None:
        group["infos/success"] = np.concatenate([[False], demo.success])  # from the reset on
    else:
        group.create_group("infos")


def _storable(values: Array) -> Array:
    """Images as they are, all else as floating-point numbers."""
    return values if values.dtype == np.uint8 or values.dtype.kind == "f" else values.astype(np.float32)


def _space(values: Array) -> dict[str, Any]:
    """The serialised space of an observation [T + 1, …]."""
    shape = values.shape[1:]
    if values.dtype == np.uint8:
        return _box(spaces.Box(0, 255, shape, np.uint8))
    return _box(spaces.Box(-np.inf, np.inf, shape, values.dtype.type))


def _box(space: spaces.Box) -> dict[str, Any]:
    bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
    return {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), **bounds}
