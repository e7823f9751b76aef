"""Reader of robomimic's HDF5 files.

A group `data` has a group `demo_<i>` per episode of T steps: `obs/<name>` and, in most files,
`next_obs/<name>` [T, …], `actions` [T, A] in [-1, 1], and `rewards` [T]; `dones` and `states` are not used.
The attribute `env_args` of `data` describes the env in JSON: `env_name`, `type`, `env_kwargs`. Source:
https://robomimic.github.io/docs/datasets/overview.html
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from residual_rl.demos.episode import Array, Demo, ends_of
from residual_rl.demos.foreign import ForeignFile, numbered
from residual_rl.demos.hdf5 import Hdf5File
from residual_rl.envs.gymnasium.observations import Leaf, Observations
from residual_rl.errors import CheckpointError
from residual_rl.utils.files import parse_json
from residual_rl.utils.text import one_line

DATA = "data"
_MARGIN = 1e-3
"""Tolerance of the bounds of actions."""


class RobomimicFile(ForeignFile):
    """A file of robomimic.

    Without `next_obs`, the observation after the last action is unknown, and T steps become T - 1. Success is
    a positive reward, where `env_args` says that the reward is sparse (`reward_shaping` false), and otherwise
    unknown.

    Raises `CheckpointError` if the file has no episodes or no `env_args`.
    """

    program = "robomimic"
    task_settings = {}  # noqa: RUF012 (robomimic names envs in its own way)

    def __init__(self, path: Path, file: Hdf5File):
        super().__init__(path, file)
        listed = file.shapes(DATA)
        groups = dict.fromkeys(name.split("/")[0] for name in listed)
        demos = numbered(groups, "demo_")
        self.names = [f"{DATA}/{name}" for name in demos]
        if not demos:
            raise CheckpointError(
                f"{path} has no episodes data/demo_0, data/demo_1, …, as robomimic writes them"
            )
        text = str(file.attributes(DATA).get("env_args", ""))
        try:
            args = parse_json(text)
            kwargs = dict(args.get("env_kwargs") or {})
            name = str(args["env_name"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: the attribute env_args of data cannot be read ({one_line(repr(error))}); expected "
                "robomimic's description of the env"
            ) from error
        shapes = file.shapes(self.names[0])
        observed = {path.removeprefix("obs/"): s[1:] for path, s in shapes.items() if path.startswith("obs/")}
        self.observations = Observations(spaces.Dict({key: _space(shape) for key, shape in observed.items()}))
        self._sparse = kwargs.get("reward_shaping") is False
        self.info: dict[str, Any] = {
            "env_info": {"env_id": name, "env_kwargs": {}, "max_episode_steps": None},
            "source_type": "robomimic",
            "source_desc": one_line(f"robomimic file of the env {name}"),
            "episodes": [
                {"episode_id": i, "episode_seed": None, "elapsed_steps": next(iter(shape), None)}
                for i, shape in enumerate(listed.get(f"{demo}/actions", ()) for demo in demos)
            ],
        }

    def array_path(self, leaf: Leaf) -> str:
        return f"obs/{leaf.path[0]}"

    def episode(self, index: int, obs: Collection[str] | None) -> Demo:
        # The observation after the last action.
        shapes = self.file.shapes(self.names[index])
        has_last = all(f"next_{path}" in shapes for path in shapes if path.startswith("obs/"))

        def read(path: str) -> Array:
            value = self.read(index, path)
            return np.concatenate([value, self.read(index, f"next_{path}")[-1:]]) if has_last else value

        # The steps.
        actions = self.read(index, "actions")
        steps = len(actions) if has_last else len(actions) - 1
        if steps < 1 or np.abs(actions).max() > 1.0 + _MARGIN:
            raise ValueError("it has a single step" if steps < 1 else "its actions are not in [-1, 1]")
        rewards = self.read(index, "rewards") if "rewards" in shapes else None
        success = rewards[:steps] > 0.0 if rewards is not None and self._sparse else None
        terminated, truncated = ends_of(steps, success)
        return Demo(
            actions=actions[:steps].clip(-1.0, 1.0).astype(np.float32),
            obs=self.read_observations(obs, read),
            terminated=terminated,
            truncated=truncated,
            rewards=None if rewards is None else rewards[:steps].astype(np.float32),
            success=success,
        )


def _space(shape: tuple[int, ...]) -> spaces.Box:
    """The space of an observation: images have three dimensions."""
    return spaces.Box(0, 255, shape, np.uint8) if len(shape) == 3 else spaces.Box(-np.inf, np.inf, shape)
