"""Training on ManiSkill: a resumed run equals an uninterrupted one bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from residual_rl.cli.main import main
from residual_rl.runs.checkpoint import CheckpointFolder

pytestmark = pytest.mark.maniskill

TINY = [
    "--env-id",
    "PushCube-v1",
    "--num-envs",
    "2",
    "--num-steps",
    "8",
    "--minibatch-size",
    "8",
    "--hidden-sizes",
    "8",
    "8",
    "--num-threads",
    "2",
]
TINY += [
    "--base-policy",
    "zero",
    "--residual-scale",
    "1",
    "--max-episode-steps",
    "10",
    "--eval-episodes",
    "2",
    "--eval-freq",
    "0",
]
TINY += ["--learning-rate-schedule", "constant", "--save-freq", "16"]


def last(run: Path) -> tuple[int, dict[str, object]]:
    found = CheckpointFolder(run / "checkpoints").latest()
    assert found is not None
    return found


def same(a: object, b: object) -> bool:
    if isinstance(a, dict):
        assert isinstance(b, dict)
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list):
        assert isinstance(b, list)
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


@pytest.mark.slow
def test_train_resume__continues_bit_for_bit_on_maniskill(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", "maniskill", *TINY, "--total-timesteps", "64", "--output-dir", str(whole)]) == 0
    assert main(["train", "maniskill", *TINY, "--total-timesteps", "32", "--output-dir", str(parts)]) == 0
    step, state = last(parts)
    assert step == 32
    # after 16 steps, the second episodes of 10 steps have had 6
    assert len(state["env"]["env"]["actions"]) == 6  # type: ignore[index]
    assert main(["train", "--resume", str(parts), "--total-timesteps", "64"]) == 0
    (_, expected), (step, resumed) = last(whole), last(parts)
    assert step == 64
    assert same(resumed["learner"], expected["learner"])
    assert same(resumed["env"], expected["env"])
