"""Small files of demonstrations, of this project and in ManiSkill's layout."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from residual_rl.demos.episode import Demo
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.writer import DemoWriter

INFO: dict[str, Any] = {
    "format_version": 1,
    "env_info": {
        "env_id": "point",
        "env_kwargs": {"max_episode_steps": 6},
        "max_episode_steps": 6,
        "control_hz": 10.0,
    },
    "source_type": "policy",
    "source_desc": "by hand",
}
FLAGS = ("terminated", "truncated", "success")


def a_demo(seed: int = 0, steps: int = 3, **fields: Any) -> Demo:
    rng = np.random.default_rng(seed)
    ends = np.arange(steps) == steps - 1
    return Demo(
        **{
            "actions": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
            "obs": {
                "state": rng.normal(size=(steps + 1, 5)).astype(np.float32),
                "arm/top": rng.integers(0, 255, (steps + 1, 4, 4, 3), np.uint8),
            },
            "terminated": ends,
            "truncated": np.zeros(steps, bool),
            "rewards": rng.normal(size=steps).astype(np.float32),
            "success": ends.copy(),
            "seed": seed,
            "draws": {"start": np.array([0.25, 0.5]), "yaw": np.array(0.125)},
            "env_states": {"sim": {"qpos": rng.normal(size=(1, 7))}},
            **fields,
        }
    )


def write(path: Path, demos: list[Demo], info: dict[str, Any] = INFO, **settings: Any) -> Path:
    with DemoWriter(path, info, **settings) as writer:
        for demo in demos:
            writer.add(demo)
    return path


def read(path: Path) -> list[Demo]:
    with Demonstrations.open(path) as demos:
        return list(demos)


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in leaves(part, f"{name}/{key}").items()}
    return {name: value}


def same(a: Demo, b: Demo) -> bool:
    """Whether two episodes are equal bit for bit, including types."""
    x, y = leaves(a), leaves(b)
    return x.keys() == y.keys() and all(
        type(v) is type(y[k])
        and (
            v.dtype == y[k].dtype and v.shape == y[k].shape and v.tobytes() == y[k].tobytes()
            if isinstance(v, np.ndarray)
            else v == y[k]
        )
        for k, v in x.items()
    )


def maniskill(path: Path, obs: Any = None, episodes: int = 2, steps: int = 3, **entry: Any) -> Path:
    """A file in the layout of RecordEpisode of ManiSkill 3."""
    with h5py.File(path, "w") as file:
        for i in range(episodes):
            group = file.create_group(f"traj_{i}", track_order=True)
            if isinstance(obs, dict):
                group.create_group("obs")
                for name, value in obs.items():
                    group[f"obs/{name}"] = value
            else:
                group["obs"] = np.full((steps + 1, 35), i, np.float32) if obs is None else obs
            group["actions"] = np.full((steps, 8), 0.5, np.float32)
            for name in FLAGS:
                group[name] = np.array([False] * (steps - 1) + [i == 0])
            group["env_states/actors/cube"] = np.zeros((steps + 1, 13), np.float32)
            group["env_states/articulations/panda"] = np.ones((steps + 1, 31), np.float32)
    common = {
        "control_mode": "pd_joint_delta_pos",
        "elapsed_steps": steps,
        "reset_kwargs": {"options": None, "seed": 5},
    }
    document = {
        "env_info": {"env_id": "PushCube-v1", "env_kwargs": {"obs_mode": "state"}, "max_episode_steps": 50},
        "commit_info": None,
        "episodes": [
            {"episode_id": i, "episode_seed": 5 + i, **common, "success": i == 0, **entry}
            for i in range(episodes)
        ],
    }
    path.with_suffix(".json").write_text(json.dumps(document))
    return path


@contextlib.contextmanager
def one_line_error(error: type[Exception], message: str, name: str) -> Iterator[None]:
    """The block raises `error`, whose text contains `message` and the `name` of the file, in one line."""
    with pytest.raises(error) as caught:
        yield
    text = str(caught.value)
    assert message in text
    assert name in text
    assert "\n" not in text
