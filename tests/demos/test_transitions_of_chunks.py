"""Demonstrations as decisions about whole chunks."""

from __future__ import annotations

from pathlib import Path

import fakes
import numpy as np
import pytest
import torch
from demo_files import write
from torch import Tensor

from residual_rl.config import ResidualCfg, RunCfg, TrainCfg
from residual_rl.demos.episode import Demo
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.transitions import episodes
from residual_rl.envs.vec_env import VecEnv
from residual_rl.factory import make_residual_env
from residual_rl.learners.off_policy.config import SACCfg
from residual_rl.registry import BASE_POLICIES, TASKS, BasePolicySpec
from residual_rl.types import BasePolicy, Obs

BASE_CHUNK = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]


class SameChunk(BasePolicy):
    """Predicts `BASE_CHUNK` whatever it sees."""

    chunk_size = num_action_steps = 3

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        return torch.tensor(BASE_CHUNK).expand(len(env_ids), -1, -1)


def make_same_chunk(cfg: None, env: VecEnv) -> SameChunk:
    return SameChunk()


SAME_CHUNK = BasePolicySpec(id="same-chunk", summary="one chunk", make=f"{__name__}:make_same_chunk")


@pytest.mark.parametrize("terminated", [True, False])
def test_episodes__action_after_the_end_continues_the_base_chunk(
    terminated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps are one decision of three steps and one that ends after its first step."""
    for registry, spec in ((TASKS, fakes.POINT_TASK), (BASE_POLICIES, SAME_CHUNK)):
        registry.all()
        monkeypatch.setattr(registry, "_specs", {**registry._specs, spec.id: spec})
    actions = np.array([[0.1, 0.3], [0.2, 0.2], [0.5, 0.4], [0.0, 0.2]], np.float32)
    ends = np.array([False, False, False, True])
    obs = {"state": np.zeros((5, 5), np.float32), "position": np.zeros((5, 2), np.float32)}
    rewards = np.array([0.0, 0.0, 0.0, 1.0], np.float32)
    never = np.zeros(4, bool)
    flags = {"terminated": never, "truncated": never} | {"terminated" if terminated else "truncated": ends}
    path = write(tmp_path / "d.h5", [Demo(actions=actions, obs=obs, rewards=rewards, **flags, success=never)])
    learner = SACCfg(demos=str(path), demo_share=0.5, hidden_sizes=(8,), batch_size=8)
    residual = ResidualCfg(residual_scale=0.5, residual_penalty=0.0, chunk="whole")
    run = RunCfg(num_envs=2, torch_threads=1)
    cfg = TrainCfg("point", "same-chunk", fakes.PointCfg(6), None, learner, residual, run, "sac")

    with Demonstrations.open(path) as demos:
        [transition] = episodes(demos, cfg, make_residual_env(cfg, 2))
    # (action - base) / 0.5, and for the steps after the end the residuals of one chunk earlier
    residuals = [[0.0, 0.2, -0.2, -0.4, 0.0, -0.4], [-0.2, 0.0, -0.2, -0.4, 0.0, -0.4]]
    np.testing.assert_allclose(transition.residual_action, residuals, atol=1e-6)
    np.testing.assert_allclose(transition.action[0], actions[:3].ravel(), atol=1e-6)
    np.testing.assert_allclose(transition.action[1], [0.0, 0.2, 0.2, 0.2, 0.5, 0.4], atol=1e-6)
    assert transition.reward.tolist() == [0.0, 1.0]
    assert transition.terminated.tolist() == [False, terminated]
    assert transition.truncated.tolist() == [False, not terminated]
