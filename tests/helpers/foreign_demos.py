"""Small demonstrations in the layouts of Minari and robomimic, written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

BOX = {"type": "Box", "dtype": "float64", "shape": [2], "low": [-np.inf, -np.inf], "high": [np.inf, np.inf]}
ACTIONS = {"type": "Box", "dtype": "float32", "shape": [2], "low": [0.0, -1.0], "high": [512.0, 1.0]}
RAW_ACTIONS = np.array([[0.0, 1.0], [128.0, 0.0], [512.0, -1.0]], np.float32)
"""The actions of each episode of three steps in the env's own units."""
NORMALISED = np.array([[-1.0, 1.0], [-0.5, 0.0], [1.0, -1.0]], np.float32)
"""The same from -1 to 1, by hand."""


def minari(
    folder: Path,
    observations: Any = None,
    space: Mapping[str, Any] = BOX,
    episodes: int = 2,
    infos: Mapping[str, Any] | None = None,
    **metadata: Any,
) -> Path:
    """A dataset of Minari with episodes of three steps.

    `observations` is an array or a nested dict of arrays, [4, …] each; None: (t, episode).
    """
    data = folder / "data"
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for i in range(episodes):
            group = file.create_group(f"episode_{i}")
            group.attrs["id"], group.attrs["seed"], group.attrs["total_steps"] = i, 5 + i, 3
            default = np.stack([np.arange(4.0), np.full(4, float(i))], 1)
            _store(group, "observations", default if observations is None else observations)
            group["actions"] = RAW_ACTIONS
            group["rewards"] = np.array([1.0, 2.0, 3.0])
            group["terminations"] = np.array([False, False, i == 0])
            group["truncations"] = np.array([False, False, i == 1])
            group.create_group("infos")
            _store(group, "infos", {"success": [False, False, False, i == 0]} if infos is None else infos)
    description = {
        "total_episodes": episodes,
        "total_steps": 3 * episodes,
        "data_format": "hdf5",
        "jpeg_encoding": True,
        "observation_space": json.dumps(space),
        "action_space": json.dumps(ACTIONS),
        "env_spec": json.dumps({"id": "Counter-v0", "entry_point": "gift:Env", "max_episode_steps": 10}),
        "dataset_id": "test/counter-v0",
        "minari_version": "0.5.4",
    }
    (data / "metadata.json").write_text(json.dumps({**description, **metadata}))
    return folder


def robomimic(
    path: Path,
    obs: Mapping[str, Any] | None = None,
    next_obs: bool = True,
    shaped: bool = False,
    actions: Any = NORMALISED,
    episodes: int = 11,
) -> Path:
    """A file of robomimic with episodes of three steps, of which those with an even number succeed.

    `obs` has the observations, [4, …] each; None: `object` (t) and `robot0_eef_pos` (episode, t, 0).
    """
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        kwargs = {"reward_shaping": shaped, "robots": ["Panda"]}
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": kwargs})
        data.attrs["total"] = 3 * episodes
        for i in range(episodes):
            group = data.create_group(f"demo_{i}")
            group.attrs["num_samples"] = 3
            group.attrs["model_file"] = "<mujoco/>"
            t = np.arange(4.0)
            default = {"object": t[:, None], "robot0_eef_pos": np.stack([np.full(4, float(i)), t, 0 * t], 1)}
            for name, values in (default if obs is None else obs).items():
                group[f"obs/{name}"] = values[:3]
                if next_obs:
                    group[f"next_obs/{name}"] = values[1:]
            group["actions"] = np.asarray(actions, np.float64)
            group["rewards"] = np.array([0.0, 0.0, float(i % 2 == 0)])
            group["dones"] = np.array([0, 0, 1])
            group["states"] = np.zeros((3, 7))
        file["mask/train"] = np.array([b"demo_0"])
    return path


def _store(group: h5py.Group, name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _store(group, f"{name}/{key}", part)
    else:
        group[name] = np.asarray(value)
