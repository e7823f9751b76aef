"""Toy Gymnasium envs with the habits of other people's.

They import NumPy and Gymnasium alone, so that any Python with these can run them. `Toys/Point-v0` takes its
habit as an argument.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

MODULE = __name__
FILE = Path(__file__)
HIGH = 512.0
"""Upper bound of the actions, which are positions, as in PushT."""


class Point(gymnasium.Env):
    """A point that moves towards the position that the action names, a tenth of the way per step.

    It starts at random and succeeds within 32 of its goal. `habit` selects what is unusual about it,
    and `at_step` the step in which that happens.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012

    def __init__(self, habit: str = "", at_step: int = 3, render_mode: str | None = None):
        self.habit, self.at_step, self.render_mode = habit, at_step, render_mode
        self.action_space: spaces.Space = spaces.Box(0.0, HIGH, (2,), np.float64)
        self.observation_space: spaces.Space = spaces.Dict(
            {
                "goal": spaces.Tuple([spaces.Box(0.0, HIGH, (2,), np.float64), spaces.Discrete(3, start=5)]),
                "point": spaces.Dict({"position": spaces.Box(0.0, HIGH, (1, 2), np.float64)}),
                "camera": spaces.Box(0, 255, (3, 4, 5), np.uint8),
                "task": spaces.Text(20),
            }
        )
        if habit == "discrete":
            self.action_space = spaces.Discrete(4)
        if habit == "unbounded":
            self.action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        if habit == "integers":
            self.action_space = spaces.Box(0, 512, (2,), np.int64)
        if habit == "flat":
            self.observation_space = spaces.Box(-np.inf, np.inf, (2, 2), np.float64)
        self.start = np.zeros(2)
        self.steps = 0
        self.closed = False
        if habit == "child":
            self.child = subprocess.Popen(["sleep", "60"])
            print("child", self.child.pid)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=None if self.habit == "ignores-seeds" else seed)
        drift = self.start * 1e-3 if self.habit == "keeps-state" else 0.0
        self.start = self.np_random.uniform(100.0, 400.0, 2)
        self.position = self.start + drift
        self.goal = self.np_random.uniform(100.0, 400.0, 2)
        self.kind = int(self.np_random.integers(3)) + 5
        self.steps = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.steps += 1
        if self.steps >= self.at_step:
            self._misbehave()
        executed = np.clip(action, 100.0, 400.0) if self.habit == "clips" else action
        self.position = self.position + 0.1 * (executed - self.position)
        if self.habit == "global-random":
            self.position = self.position + np.random.uniform(-1.0, 1.0, 2)  # noqa: NPY002
        distance = float(np.linalg.norm(self.position - self.goal))
        info: dict[str, Any] = {
            "distance": distance,
            "seed": 77,
            "name": "point",
            "success": [distance < 32.0],
        }
        if self.habit == "no-success" or (self.habit == "late-success" and self.steps < 25):
            del info["success"]
        if self.habit == "clips":
            info["executed_action"] = executed
        if self.habit == "quiet" and self.steps > 20:
            del info["distance"]
        failed = self.habit == "fails" and self.steps >= self.at_step
        return self._obs(), -distance, failed, False, info

    def render(self) -> Any:
        if self.habit == "blind":
            raise OSError("no display")
        frame = np.zeros((32, 48, 3), np.uint8)
        frame[..., 0] = min(self.steps, 255)
        return frame

    def close(self) -> None:
        if self.habit.startswith("closes:"):
            Path(self.habit.removeprefix("closes:")).write_text("closed")

    def _obs(self) -> Any:
        if self.habit == "flat":
            return np.stack([self.position, self.goal])
        image = np.full((3, 4, 5), self.steps % 256, np.uint8)
        image[1, 2, 3] = 200
        if self.habit == "nan" and self.steps >= self.at_step:
            return {**self._plain(image), "point": {"position": np.full((1, 2), np.nan)}}
        return self._plain(image)

    def _plain(self, image: Any) -> dict[str, Any]:
        point = {"position": self.position[None].copy()}
        return {"goal": (self.goal.copy(), self.kind), "point": point, "camera": image, "task": "reach"}

    def _misbehave(self) -> None:
        if self.habit == "prints":
            print("the point moved\n" * 1000)
        if self.habit == "raises":
            print("before the fall")
            raise RuntimeError("the point\nfell off")
        if self.habit == "input":
            input("Continue? [y/n] ")
        if self.habit == "exits":
            sys.exit("enough")
        if self.habit == "killed":
            print("out of memory, surely", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.habit == "hangs":
            time.sleep(60.0)


class Goals:
    """An adapter with all of its methods."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def make(self, env_id: str, kwargs: dict[str, Any]) -> Any:
        return gymnasium.make(env_id, **kwargs)

    def seed(self, env: Any, seed: int) -> None:
        self.seeds.append(seed)
        env.unwrapped._np_random = np.random.default_rng(seed)

    def success(self, env: Any, obs: Any, reward: float, terminated: bool, info: Any) -> bool:
        return bool(reward > -64.0)

    def reward(self, env: Any, obs: Any, action: Any, reward: float, info: Any) -> float:
        return float(action[0]) / HIGH

    def observe(self, env: Any, obs: Any) -> Any:
        return {"offset": obs["goal"][0] - obs["point"]["position"][0], "eye": np.zeros((2, 3, 3), np.uint8)}

    def expert(self, env: Any, obs: Any) -> Any:
        return obs["goal"][0]


class Expert:
    """An adapter with one method."""

    def expert(self, env: Any, obs: Any) -> Any:
        return obs["goal"][0]


gymnasium.register("Toys/Point-v0", Point, max_episode_steps=30)
gymnasium.register("Toys/PointWithoutLimit-v0", Point)
