"""A base policy for the point of `fakes` with the settings of a learned one."""

from __future__ import annotations

from dataclasses import dataclass

import fakes
import pytest
import torch
from fakes import Homing
from torch import Tensor

from residual_rl.envs.vec_env import VecEnv
from residual_rl.registry import BASE_POLICIES, TASKS, BasePolicySpec
from residual_rl.types import ActionChunk, Obs


@dataclass(frozen=True)
class LearnedCfg:
    """Settings of a base policy that moves to the origin."""

    speed: float = 1.0
    """Negative: it moves away."""
    checkpoint: str = ""
    """Folder that records its demonstrations."""
    num_samples: int = 1
    """With two or more, it reports a spread of 0.25."""


class Learned(Homing):
    def __init__(self, cfg: LearnedCfg):
        super().__init__(cfg.speed)
        self.num_samples = cfg.num_samples

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor | ActionChunk:  # type: ignore[override]
        actions = super().predict_action_chunk(obs, env_ids)
        spread = torch.full(actions.shape[:2], 0.25)
        return actions if self.num_samples == 1 else ActionChunk(actions, spread)


def make_learned(cfg: LearnedCfg, env: VecEnv) -> Learned:
    return Learned(cfg)


LEARNED = BasePolicySpec(
    id="learned",
    summary="moves to the origin",
    make="learned_point:make_learned",
    config="learned_point:LearnedCfg",
    learned=True,
)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the point, its controller and `LEARNED` to the registries, and shorten predictions of failures."""
    for registry, spec in (
        (TASKS, fakes.POINT_TASK),
        (BASE_POLICIES, fakes.HOMING),
        (BASE_POLICIES, LEARNED),
    ):
        registry.all()
        monkeypatch.setattr(registry, "_specs", {**registry._specs, spec.id: spec})
    monkeypatch.setattr("residual_rl.evaluation.failure_prediction._STEPS", 10)
