"""Training runs in `fakes.PointEnv` on a weak base policy, with a residual whose effect is set by hand."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from constant_learner import ConstantLearner
from torch import Tensor, nn

from residual_rl.config import TrainCfg, replace_fields
from residual_rl.envs.vec_env import VecEnv
from residual_rl.registry import BASE_POLICIES, LEARNERS, TASKS, BasePolicySpec, LearnerSpec
from residual_rl.runner import Runner
from residual_rl.runs.run_folder import RunFolder
from residual_rl.types import Obs


class Weak(fakes.Homing):
    """Moves towards the origin with half of the possible speed, and often arrives too late."""

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        return 0.5 * super().predict_action_chunk(obs, env_ids)


def make_weak(cfg: None, env: VecEnv) -> Weak:
    return Weak()


@dataclass(frozen=True)
class SteeringCfg:
    """Settings of the learner `steering`."""

    num_steps: int = 4
    """Steps per env between two updates."""
    homing: float = 0.0
    """Residual action towards the origin; away from it if negative."""
    push: tuple[float, float] = (0.0, 0.0)
    """Constant residual action."""


class Steering(nn.Module):
    """The policy of the learner."""

    def __init__(self, cfg: SteeringCfg, device: torch.device):
        super().__init__()
        self.homing = nn.Parameter(torch.tensor(cfg.homing, device=device))
        self.push = nn.Parameter(torch.tensor(cfg.push, device=device))

    @torch.no_grad()
    def act(self, obs: Obs) -> Tensor:
        return self.homing * (-10.0 * obs["position"]).clamp(-1.0, 1.0) + self.push


class SteeringLearner(ConstantLearner):
    """Learns nothing."""

    def __init__(
        self, cfg: Any, obs_space: Any, action_dim: int, num_envs: int, device: torch.device, seed: int
    ):
        self.num_steps, self.num_envs, self.device, self.seed = cfg.num_steps, num_envs, device, seed
        self.policy = make_policy(cfg, obs_space, action_dim, device)  # type: ignore[assignment]
        self.seen = 0


def make_policy(cfg: SteeringCfg, obs_space: Any, action_dim: int, device: torch.device) -> Steering:
    """Implements `LearnerSpec.make_policy`."""
    return Steering(cfg, device)


WEAK = BasePolicySpec(id="weak", summary="half speed", make=f"{__name__}:make_weak")
STEERING = LearnerSpec(
    id="steering",
    summary="a residual set by hand",
    config=f"{__name__}:SteeringCfg",
    make=f"{__name__}:SteeringLearner",
    make_policy=f"{__name__}:make_policy",
)
TASK = dataclasses.replace(fakes.POINT_TASK, base_policy="weak", learner="steering")
TINY: dict[str, Any] = {
    "num_envs": 4,
    "total_timesteps": 64,
    "eval_freq": 32,
    "save_freq": 32,
    "eval_episodes": 32,
    "confirm_episodes": 120,
    "residual_scale": 0.5,
}
"""16 env steps per iteration, 4 iterations, evaluations at 0, 32 and 64."""


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the task, the base policy and the learner for a test."""
    for registry, spec in ((TASKS, TASK), (BASE_POLICIES, WEAK), (LEARNERS, STEERING)):
        monkeypatch.setitem(registry._specs, spec.id, spec)  # type: ignore[attr-defined]


def config(base_policy: str = "weak", **settings: Any) -> TrainCfg:
    return replace_fields(TrainCfg.default("point", base_policy), {**TINY, **settings})


def train(path: Path, base_policy: str = "weak", resume: bool = False, **settings: Any) -> dict[str, Any]:
    """Train, or resume, in this process; returns the summary."""
    cfg, folder = config(base_policy, **settings), RunFolder(path)
    with folder.resume() if resume else folder.start(cfg.to_dict()):
        return Runner(cfg, folder, resume=resume).learn()
