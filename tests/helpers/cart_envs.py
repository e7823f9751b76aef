"""Small Gymnasium envs and base policies for the tests of the wrappers."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LOW, HIGH = np.float32([0.0, -2.0]), np.float32([512.0, 2.0])
"""Bounds of the actions."""


class Cart(gymnasium.Env):
    """A position that the second action moves; the first only enters the reward.

    The observation is [position, step]. Episodes last 2 to 5 steps, depending on the seed, and are truncated,
    or terminated if their length is even.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-100.0, 100.0, (2,), np.float64)
        self.action_space = spaces.Box(LOW, HIGH, dtype=np.float32)
        self.executed: list[np.ndarray] = []
        """The actions that it was given."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._length = int(self.np_random.integers(2, 6))
        self._step = 0
        self._position = self.np_random.uniform(-1.0, 1.0)
        return self._observe(), {"length": self._length}

    def step(self, action: np.ndarray) -> Any:
        assert self.action_space.contains(action), action
        self.executed.append(action)
        self._step += 1
        self._position += 0.1 * float(action[1])
        ended = self._step >= self._length
        reward = float(action[0] / 512.0 - abs(self._position))
        even = self._length % 2 == 0
        return self._observe(), reward, ended and even, ended and not even, {"position": self._position}

    def _observe(self) -> np.ndarray:
        return np.array([self._position, self._step])


class DictCart(gymnasium.ObservationWrapper):
    """`Cart` with nested observations."""

    def __init__(self) -> None:
        super().__init__(Cart())
        vector = spaces.Box(-100.0, 100.0, (1,), np.float64)
        inner = spaces.Dict({"step": vector, "sign": spaces.MultiBinary(1)})
        self.observation_space = spaces.Dict({"position": vector, "more": inner})

    def observation(self, observation: np.ndarray) -> dict[str, Any]:
        sign = (observation[:1] > 0.0).astype(np.int8)
        return {"position": observation[:1], "more": {"step": observation[1:], "sign": sign}}


class ImageCart(gymnasium.ObservationWrapper):
    """`Cart` with an image."""

    def __init__(self) -> None:
        super().__init__(Cart())
        self.observation_space = spaces.Box(0, 255, (4, 3, 3), np.uint8)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return np.full((4, 3, 3), int(observation[1]), np.uint8)


class Counting:
    """A policy with state: its first action counts the steps of the episode, the second moves to 0."""

    def __init__(self) -> None:
        self.count = 0
        self.seen: list[Any] = []
        """The observations that it was given, and "reset"."""

    def reset(self) -> None:
        self.count = 0
        self.seen.append("reset")

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        self.seen.append(copy.deepcopy(obs))
        self.count += 1
        return np.float32([16.0 * self.count, -obs[0]])


class CountingBatch:
    """`Counting` for a batch of any envs."""

    def __init__(self, num_envs: int) -> None:
        self.count = np.zeros(num_envs, np.int64)
        self.queries: list[list[int]] = []
        """The envs of each query."""

    def reset(self, mask: np.ndarray) -> None:
        self.count[mask] = 0

    def __call__(self, obs: np.ndarray, env_ids: np.ndarray) -> np.ndarray:
        self.queries.append(env_ids.tolist())
        self.count[env_ids] += 1
        return np.stack([16.0 * self.count[env_ids], -obs[:, 0]], 1).astype(np.float32)
