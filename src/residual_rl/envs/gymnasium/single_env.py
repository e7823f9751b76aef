"""One env with its adapter: normalised actions, named observations, rewards and success.

Loaded by path in worker processes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from .action_range import ActionRange
from .adapter import Adapter, EnvRefusedError
from .observations import EXPERT, Observations, space_of

Arrays = dict[str, NDArray[Any]]


@dataclass(slots=True)
class Step:
    """The result of a step."""

    obs: Arrays
    reward: float
    success: bool
    terminated: bool
    truncated: bool
    executed_action: NDArray[np.float32] | None
    """[A] in [-1, 1]; None if the env does not report it."""
    info: Mapping[str, Any]

    def metrics(self) -> dict[str, float]:
        """The numbers in `info` by name."""
        found = {name: number(value) for name, value in self.info.items() if isinstance(name, str)}
        return {name: value for name, value in found.items() if value is not None}


class SingleEnv:
    """One env.

    Args:
        settings: see `GymnasiumEnvCfg.worker_settings`.
        adapter_class: a class with all methods of `Adapter`.

    Raises:
        EnvRefusedError: the env cannot be created or used.
    """

    def __init__(self, settings: Mapping[str, Any], adapter_class: type[Adapter]):
        self._settings = settings
        self._is_sparse = settings["reward_mode"] == "sparse"
        self._end_at_success = settings["end_at_success"]
        self.adapter = adapter_class()
        # flags come before the attributes of an adapter's class
        for name in ("success_keys", "success_reward"):
            if settings[name] is not None:
                setattr(self.adapter, name, settings[name])
        env_id: str = settings["env_id"]
        try:
            self.env = self.adapter.make(env_id, dict(settings["make_kwargs"]))
        except (gymnasium.error.Error, ImportError) as error:
            raise EnvRefusedError(f"cannot create {env_id}: {' '.join(str(error).split())}") from error
        try:
            self.actions = ActionRange(self.env.action_space, env_id)
        except ValueError as error:
            raise EnvRefusedError(str(error)) from None
        # an adapter sets `expert` to None for an env without one
        self._has_expert = adapter_class.expert is not Adapter.expert and self.adapter.expert is not None
        # an adapter that observes something else: its first observation has the shapes
        space = self.env.observation_space
        self._observes = adapter_class.observe is not Adapter.observe
        if self._observes:
            space = space_of(self.adapter.observe(self.env, self._raw_reset(0)))
        self.observations = Observations(space)

    def layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array of an observation."""
        layout = self.observations.layout()
        return {**layout, EXPERT: (self.actions.unit.shape, "float32")} if self._has_expert else layout

    def reports_success(self, info: Mapping[str, Any]) -> bool:
        """Whether success can be read, if `info` is a typical one."""
        adapter = self.adapter
        return (
            type(adapter).success is not Adapter.success
            or adapter.success_reward is not None
            or any(key in info for key in adapter.success_keys)
        )

    def reset(self, seed: int) -> Arrays:
        """Start the episode of `seed`, in [0, 2^31), and return its first observation."""
        return self._arrays(self._raw_reset(seed))

    def step(self, action: NDArray[Any]) -> Step:
        """Execute an action in the env's units (see `ActionRange.raw`)."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        success = bool(self.adapter.success(self.env, obs, float(reward), bool(terminated), info))
        if self._is_sparse:
            reward = success
        else:
            reward = self.adapter.reward(self.env, obs, action, float(reward), info)
        executed = info.get("executed_action")
        return Step(
            obs=self._arrays(obs),
            reward=float(reward),
            success=success,
            terminated=bool(terminated) or (success and self._end_at_success),
            truncated=bool(truncated),
            executed_action=None if executed is None else self.actions.normalised(executed),
            info=info,
        )

    def render(self) -> NDArray[np.uint8]:
        """A frame [H, W, 3] of the env as it is now.

        Raises:
            EnvRefusedError: the env cannot be rendered.
        """
        name = self._settings["env_id"]
        try:
            frame = self.env.render()
        except Exception as error:  # a library, a display or a driver is missing
            text = " ".join(str(error).split())
            raise EnvRefusedError(f"{name} cannot be rendered: {type(error).__name__}: {text}") from error
        if isinstance(frame, list | tuple):
            frame = frame[-1] if frame else None
        if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
            raise EnvRefusedError(f"{name} cannot be rendered: it has no render mode rgb_array")
        return frame.astype(np.uint8)

    def _raw_reset(self, seed: int) -> Any:
        # some envs draw from the global generators
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        self.adapter.seed(self.env, seed)
        return self.env.reset(seed=seed)[0]

    def _arrays(self, obs: Any) -> Arrays:
        arrays = self.observations(self.adapter.observe(self.env, obs) if self._observes else obs)
        if self._has_expert:
            arrays[EXPERT] = self.actions.normalised(self.adapter.expert(self.env, obs))
        return arrays


def number(value: Any) -> float | None:
    """An entry of `info` as a number; None if it is not a single one."""
    if isinstance(value, bool | int | float | np.integer | np.floating | np.bool_):
        return float(value)
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "biuf":
        return float(value.item())
    return None
