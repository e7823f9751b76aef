"""A custom task in plain torch: a point with imprecise actuation must reach a goal.

    python examples/custom_task.py train point-reach

In a package, this entry point lets all commands of `residual-rl` find it:

    [project.entry-points."residual_rl.tasks"]
    point-reach = "my_package.custom_task"
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl import Obs, Quantities, State, Task, TaskEnv, TaskSpec, register_task, uniform
from residual_rl.cli.main import main


@dataclasses.dataclass(frozen=True)
class PointCfg:
    """Settings of `point-reach`; each field is a flag."""

    tolerance: float = 0.1
    """Distance to the goal below which the episode is a success [m]."""
    max_episode_steps: int = 40
    """Steps after which an episode is truncated."""


class PointReach(Task):
    """Observation, reward, success and randomisation. An action of 1 moves the point's target by 10 cm."""

    success_hold_steps = 1

    def __init__(self, cfg: PointCfg):
        self.cfg, self.max_episode_steps = cfg, cfg.max_episode_steps
        self.action_unit = torch.full((2,), 0.1)

    def observation_space(self) -> spaces.Dict:
        return spaces.Dict({"state": spaces.Box(-4.0, 4.0, (4,), np.float32)})

    def randomize(self, seed: Tensor) -> Quantities:
        start_and_goal = 2.0 * uniform(seed, stream=0, n=4) - 1.0
        return {"start": start_and_goal[:, :2], "goal": start_and_goal[:, 2:]}

    def joint_target(self, action: Tensor, q: Quantities) -> Tensor:
        return (q["joint_target"] + self.action_unit * action).clamp(-2.0, 2.0)

    def observe(self, q: Quantities) -> Obs:
        return {"state": torch.cat([q["joint_position"], q["goal"] - q["joint_position"]], 1).float()}

    def holds(self, q: Quantities) -> Tensor:
        return self.metrics(q)["distance"] < self.cfg.tolerance

    def reward_terms(self, q: Quantities) -> dict[str, Tensor]:
        return {"success": 10.0 * q["success"], "distance": -self.metrics(q)["distance"]}

    def metrics(self, q: Quantities) -> dict[str, Tensor]:
        return {"distance": (q["goal"] - q["joint_position"]).norm(dim=1)}


class PointPhysics:
    """Provides the quantities (`residual_rl.Physics`): the point moves halfway to its target, with a constant
    drift."""

    model, control_hz, deterministic = None, 10.0, True

    def __init__(self, num_envs: int, device: str):
        self.num_envs, self.device = num_envs, torch.device(device)
        self._position = torch.zeros(num_envs, 2, dtype=torch.float64, device=self.device)

    def reset(self, env_ids: Tensor, episode: Quantities) -> None:
        self._position = self._position.index_copy(0, env_ids, episode["start"])

    def step(self, joint_target: Tensor, env_ids: Tensor | None = None) -> None:
        self._before = self._position
        moved = self._position + 0.5 * (joint_target - self._position) + torch.tensor([0.01, 0.0])
        self._position = moved if env_ids is None else self._position.index_copy(0, env_ids, moved[env_ids])

    def state_before(self) -> State:
        return {"position": self._before}

    def read(self) -> Quantities:
        return {"joint_position": self._position}

    def scenes(self) -> Tensor:
        return self._position

    def render(
        self, scenes: Tensor, cameras: Sequence[str], size: tuple[int, int], **_: Any
    ) -> dict[str, np.ndarray]:
        images = np.full((len(scenes), *size, 3), 255, np.uint8)
        for image, (x, y) in zip(images, (scenes.cpu().numpy() + 2.0) / 4.0, strict=True):
            row, column = int((1.0 - y) * (size[0] - 5)), int(x * (size[1] - 5))
            image[row : row + 5, column : column + 5] = 0
        return dict.fromkeys(cameras, images)

    def state_dict(self) -> State:
        return {"position": self._position}

    def load_state_dict(self, state: State) -> None:
        self._position = state["position"].to(self.device)

    def close(self) -> None:
        """Nothing to free."""


def make(cfg: PointCfg, num_envs: int, num_threads: int, device: str) -> TaskEnv:
    """The vec_env: `TaskEnv` adds episode ends, seeds, resets and resuming."""
    return TaskEnv(PointReach(cfg), PointPhysics(num_envs, device))


register_task(
    TaskSpec(
        id="point-reach",
        summary="a point in the plane reaches a goal",
        config=f"{__name__}:PointCfg",
        make=f"{__name__}:make",
        base_policy="zero",  # with a residual_scale of 1: plain reinforcement learning
        train_overrides={
            "residual_scale": 1.0,
            "learning_rate": 1e-3,
            "gamma": 0.95,
            "obs_keys": ("state",),
            "total_timesteps": 40_000,
        },
        metric_units={"distance": "m"},
        gymnasium_id="examples/PointReach-v0",
    )
)

if __name__ == "__main__":
    sys.exit(main())
