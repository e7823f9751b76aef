"""The envs that one worker process of `GymVecEnv` steps.

A worker loads this file and those that it imports by their paths: its interpreter needs NumPy, Gymnasium and
the env's packages, not this package.
"""

from __future__ import annotations

import inspect
import os
import platform
import sys
import types
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .adapter import Adapter, EnvRefusedError

try:
    from .probe import probe
    from .single_env import Arrays, SingleEnv, Step, number
except ImportError as error:
    raise EnvRefusedError(f"{sys.executable} needs Gymnasium and NumPy: {error}") from error


def make(settings: dict[str, Any], num_envs: int) -> EnvWorker:
    """Create the envs of a worker process."""
    return EnvWorker(settings, num_envs)


class EnvWorker:
    """`num_envs` envs, with the methods that a `WorkerPool` calls.

    Args:
        settings: see `GymnasiumEnvCfg.worker_settings`.
        num_envs: number of envs.

    Raises:
        EnvRefusedError: the env cannot be created or used.
    """

    def __init__(self, settings: dict[str, Any], num_envs: int):
        self._settings, self._name = settings, settings["env_id"]
        if settings["mujoco_gl"]:  # MuJoCo reads it when it is imported
            os.environ["MUJOCO_GL"] = settings["mujoco_gl"]
        for module in settings["env_modules"]:
            _load(module)
        adapter_class = _adapter_class(settings["adapter"])
        self._envs = [SingleEnv(settings, adapter_class) for _ in range(num_envs)]
        spec = getattr(self._envs[0].env, "spec", None)
        self._max_episode_steps: int | None = settings["max_episode_steps"] or getattr(
            spec, "max_episode_steps", None
        )
        self._arrays: Arrays = {}
        self._obs: list[tuple[str, NDArray[Any]]] = []
        """Name and shared array of each observation."""
        self._metrics: list[str] = []
        """The metrics, in the order of their array."""

    def describe(self) -> dict[str, Any]:
        """Properties of the envs, as JSON."""
        env = self._envs[0]
        return {
            "max_episode_steps": self._max_episode_steps,
            "control_hz": _control_hz(env.env),
            "action_unit": env.actions.unit.tolist(),
            "action_centre": env.actions.centre.tolist(),
            "observations": env.layout(),
            "ignored": env.observations.ignored,
            "software": {
                "python": platform.python_version(),
                **{d.name: d.version for d in metadata.distributions() if d.name},
            },
        }

    def probe(self) -> dict[str, Any]:
        """See `probe.probe`."""
        return probe(self._envs[0], self._name, self._max_episode_steps)

    def use_metrics(self, names: list[str]) -> None:
        """Set the `names` of the metrics [M] that `step` writes."""
        self._metrics = names

    def share(self, arrays: Arrays) -> None:
        """Store the shared arrays."""
        self._arrays |= arrays
        self._obs = [(n.removeprefix("obs/"), a) for n, a in self._arrays.items() if n.startswith("obs/")]

    def reset(self) -> None:
        """Start new episodes in the active envs."""
        for i in np.flatnonzero(self._arrays["active"]).tolist():
            self._write(i, self._envs[i].reset(int(self._arrays["seed"][i])))
            self._arrays["metrics"][i] = 0.0

    def step(self) -> None:
        """Step the active envs."""
        # As much as possible is done for all envs at once: each operation between two steps costs time.
        arrays, ids = self._arrays, np.flatnonzero(self._arrays["active"]).tolist()
        raw_actions = self._envs[0].actions.raw(arrays["action"])
        steps = [self._envs[i].step(raw_actions[i]) for i in ids]
        for i, step in zip(ids, steps, strict=True):
            self._write(i, step.obs)
        arrays["reward"][ids] = [step.reward for step in steps]
        arrays["flags"][ids] = [(step.success, step.terminated, step.truncated) for step in steps]
        if self._metrics:
            arrays["metrics"][ids] = [self._metrics_of(i, step) for i, step in zip(ids, steps, strict=True)]
        if "executed_action" in arrays:
            for i, step in zip(ids, steps, strict=True):
                executed = step.executed_action
                arrays["executed_action"][i] = arrays["action"][i] if executed is None else executed

    def frame_shape(self) -> list[int]:
        """Shape of the frames of `render`. Needs a reset."""
        return list(self._envs[0].render().shape)

    def render(self) -> None:
        """Write frames of the active envs."""
        for i in np.flatnonzero(self._arrays["active"]).tolist():
            self._arrays["frame"][i] = self._envs[i].render()

    def close(self) -> None:
        """Close the envs."""
        for env in self._envs:
            env.env.close()

    def _metrics_of(self, i: int, step: Step) -> list[float]:
        """The metrics of a step of env `i`; an entry that `info` lacks keeps its value."""
        values = [number(step.info.get(name)) for name in self._metrics]
        if None in values:
            last = self._arrays["metrics"][i].tolist()
            values = [old if new is None else new for old, new in zip(last, values, strict=True)]
        return values  # type: ignore[return-value]

    def _write(self, i: int, obs: dict[str, NDArray[Any]]) -> None:
        """Write an observation to the arrays of env `i`."""
        for name, array in self._obs:
            array[i] = obs[name]


def _load(place: str) -> types.ModuleType:
    """The module or file that a setting names. The program of the worker has the function for it."""
    if place.endswith(".py"):
        sys.path.append(os.path.dirname(os.path.abspath(place)))  # for what the file imports
    try:
        module: types.ModuleType = sys.modules["__main__"].load(place)
    except ImportError as error:
        raise EnvRefusedError(f"cannot import {place} in {sys.executable}: {error}") from error
    return module


def _adapter_class(reference: str) -> type[Adapter]:
    """The class `module:Class` or `FILE.py:Class`, with the methods of `Adapter` where it has none."""
    if not reference:
        return Adapter
    place, _, name = reference.rpartition(":")
    found = getattr(_load(place), name, None) if place else None
    if not inspect.isclass(found):
        raise EnvRefusedError(
            f"the adapter {reference} is not a class; expected module:Class or FILE.py:Class"
        )
    return type(found.__name__, (found, Adapter), {})


def _control_hz(env: Any) -> float | None:
    """Steps per second [Hz], if the env says so."""
    # `dt` of some envs is that of the physics, so the frame rate comes first
    hz = (getattr(env, "metadata", None) or {}).get("render_fps")
    if hz:
        return float(hz)
    dt = getattr(getattr(env, "unwrapped", env), "dt", None)
    return 1.0 / float(dt) if isinstance(dt, int | float) and dt > 0 else None
