"""A learner of another package is trained, resumed, evaluated and listed like those of this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from constant_learner import SPEC, ConstantCfg, ConstantLearner

from residual_rl.cli import eval as eval_command
from residual_rl.cli.main import main
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.factory import make_learner, make_residual_env
from residual_rl.learners.ppo.config import PPOCfg
from residual_rl.registry import LEARNERS, register_learner

TINY = [
    "--num-envs",
    "4",
    "--max-episode-steps",
    "5",
    "--eval-episodes",
    "2",
    "--num-threads",
    "1",
    "--total-timesteps",
    "64",
]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the learner for one test."""
    LEARNERS.all()
    monkeypatch.setattr(LEARNERS, "_specs", dict(LEARNERS._specs))
    register_learner(SPEC)


def test_train_cfg_default__external_learner_keeps_its_own_defaults() -> None:
    ppo, other = TrainCfg.default("so101-paper"), TrainCfg.default("so101-paper", learner_id="constant")
    assert isinstance(ppo.learner, PPOCfg)
    assert ppo.learner.final_std == 0.05  # set by the task
    assert (other.learner_id, other.learner) == ("constant", ConstantCfg())
    assert (other.task, other.base, other.residual, other.run) == (ppo.task, ppo.base, ppo.residual, ppo.run)
    assert TrainCfg.from_dict(json.loads(json.dumps(other.to_dict())), None) == other


def test_make_learner__uses_the_device_of_the_learner() -> None:
    cfg = replace_fields(TrainCfg.default("so101-paper", "zero", "constant"), {"device": "cpu:0", "seed": 7})
    env = make_residual_env(cfg, 3)
    learner = make_learner(cfg, env)
    env.close()
    assert isinstance(learner, ConstantLearner)
    assert (learner.device, learner.seed, learner.num_envs) == (torch.device("cpu:0"), 7, 3)
    assert env.device == torch.device("cpu")


@pytest.mark.slow
def test_constant_learner__external_learner_trains_resumes_evaluates_and_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval_command, "write_report", lambda folder, *rest, **named: folder / "report.html")
    run = tmp_path / "run"
    arguments = ["train", "so101-paper", "--learner", "constant", "--push", "0.5", "--alpha", "0.2", *TINY]
    assert main([*arguments, "--output-dir", str(run)]) == 0
    config: dict[str, Any] = json.loads((run / "config.json").read_text())
    assert (config["learner_id"], config["learner"]) == ("constant", {"num_steps": 4, "push": 0.5})
    assert main(["train", "--resume", str(run), "--total-timesteps", "128"]) == 0
    assert '"train/seen": 128.0' in (run / "metrics.jsonl").read_text().splitlines()[-1]

    # the best model is the base policy, since pushing shows no gain
    assert main(["eval", str(run), "--model", "final", "--n-episodes", "2"]) == 0
    found = json.loads((run / "eval.json").read_text())
    size = found["policies"]["residual"]["residual_magnitude"]["mean"]
    assert size == pytest.approx(0.2 * 0.5 * 6**0.5, rel=1e-6)  # the norm of six equal joints
    capsys.readouterr()
    assert main(["list"]) == 0
    assert "pushes all joints alike" in capsys.readouterr().out


@pytest.mark.gpu
def test_ppo__trains_on_a_gpu_with_envs_on_the_cpu(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [
        "train",
        "so101-paper",
        "--device",
        "cuda",
        "--num-steps",
        "8",
        "--minibatch-size",
        "16",
        *TINY,
    ]
    assert main([*arguments, "--output-dir", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--total-timesteps", "128"]) == 0
    assert main(["eval", str(run), "--n-episodes", "2"]) == 0
