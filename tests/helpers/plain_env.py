"""A Gymnasium env with the observations of gym-pusht: a point, a goal, and actions from 0 to 512."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

MODULE = __name__


class Pusher(gymnasium.Env):
    """A point that moves to the action. It succeeds at its goal."""

    metadata = {"render_fps": 10}  # noqa: RUF012

    def __init__(self) -> None:
        box = spaces.Box(0.0, 512.0, (2,), np.float64)
        self.action_space: spaces.Space = box
        self.observation_space: spaces.Space = spaces.Dict(environment_state=box, agent_pos=box)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.goal = self.np_random.uniform(0.0, 512.0, (2, 2))
        return self._obs(), {"is_success": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position = np.asarray(action, np.float64)
        success = bool(np.linalg.norm(self.position - self.goal) < 1.0)
        return self._obs(), float(success), success, False, {"is_success": success}

    def _obs(self) -> dict[str, Any]:
        return {"environment_state": self.goal.copy(), "agent_pos": self.position.copy()}


gymnasium.register("Plain/Pusher-v0", Pusher, max_episode_steps=20)
