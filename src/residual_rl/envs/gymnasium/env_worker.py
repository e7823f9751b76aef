"""The envs that one worker process of `GymVecEnv` steps.

A worker loads this file and those that it imports by their paths: its interpreter needs NumPy, Gymnasium and
the env's packages, not this package.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .adapter import Adapter, EnvRefusedError

try:
    from .probe import probe
    from .single_env import Arrays, SingleEnv
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
            _import(module)
        adapter_class = _adapter_class(settings["adapter"])
        self._envs = [SingleEnv(settings, adapter_class) for _ in range(num_envs)]
        spec = getattr(self._envs[0].env, "spec", None)
        self._max_episode_steps: int | None = settings["max_episode_steps"] or getattr(
            spec, "max_episode_steps", None
        )
        self._arrays: Arrays = {}
        self._metrics: list[str] = []

    def describe(self) -> dict[str, Any]:
        """Properties of the envs, as JSON."""
        env = self._envs[0]
        return {
            "max_episode_steps": self._max_episode_steps,
            "control_hz": _control_hz(env.env),
            "action_unit": env.actions.unit.tolist(),
            "observations": env.layout(),
            "ignored": env.observations.ignored,
        }

    def probe(self) -> dict[str, Any]:
        """See `probe.probe`."""
        return probe(self._envs[0], self._name, self._max_episode_steps)

    def share(self, arrays: Arrays) -> None:
        """Store the shared arrays."""
        self._arrays |= arrays
        self._metrics = [name for name in self._arrays if name.startswith("metrics/")]

    def reset(self) -> None:
        """Start new episodes in the active envs."""
        for i in np.flatnonzero(self._arrays["active"]).tolist():
            self._write(i, self._envs[i].reset(int(self._arrays["seed"][i])))
            for name in self._metrics:
                self._arrays[name][i] = 0.0

    def step(self) -> None:
        """Step the active envs."""
        arrays = self._arrays
        for i in np.flatnonzero(arrays["active"]).tolist():
            # a copy: the env may keep its action, and the pool overwrites the shared array
            step = self._envs[i].step(arrays["action"][i].copy())
            self._write(i, step.obs)
            arrays["reward"][i] = step.reward
            arrays["success"][i] = step.success
            arrays["terminated"][i] = step.terminated
            arrays["truncated"][i] = step.truncated
            arrays["executed_action"][i] = step.executed_action
            if self._metrics:
                metrics = step.metrics()
                for name in self._metrics:
                    # an entry that `info` lacks keeps its value
                    arrays[name][i] = metrics.get(name.removeprefix("metrics/"), arrays[name][i])

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

    def _write(self, i: int, obs: dict[str, NDArray[Any]]) -> None:
        """Write an observation to the arrays of env `i`."""
        for name, value in obs.items():
            self._arrays[f"obs/{name}"][i] = value


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EnvRefusedError(f"cannot import {module} in the interpreter of the env: {error}") from error


def _adapter_class(reference: str) -> type[Adapter]:
    """The class that `reference` names, with the methods of `Adapter` where it has none.

    The program of the worker resolves references, to `module:Class` or `FILE.py:Class`.
    """
    if not reference:
        return Adapter
    try:
        found = sys.modules["__main__"].resolve(reference)
    except (ImportError, AttributeError, FileNotFoundError) as error:
        raise EnvRefusedError(f"cannot load the adapter {reference}: {error}") from error
    if not inspect.isclass(found):
        raise EnvRefusedError(f"the adapter {reference} is no class")
    return type(found.__name__, (found, Adapter), {})


def _control_hz(env: Any) -> float | None:
    """Steps per second [Hz], if the env says so."""
    # `dt` of some envs is that of the physics, so the frame rate comes first
    hz = (getattr(env, "metadata", None) or {}).get("render_fps")
    if hz:
        return float(hz)
    dt = getattr(getattr(env, "unwrapped", env), "dt", None)
    return 1.0 / float(dt) if isinstance(dt, int | float) and dt > 0 else None
