"""Promise 10: a run folder is self-contained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import CLI_TINY

from residual_rl.cli.main import main
from residual_rl.config import TrainCfg


@pytest.mark.slow
def test_run_folder__contains_everything_after_train_and_eval(tmp_path: Path, opengl: None) -> None:
    run = tmp_path / "run"
    flags = [
        *CLI_TINY,
        "--total-timesteps",
        "64",
        "--eval-freq",
        "32",
        "--seed",
        "5",
        "--output-dir",
        str(run),
    ]
    assert main(["train", "so101-paper", *flags]) == 0
    assert main(["eval", str(run), "--n-episodes", "2", "--compare-base", "--save-video"]) == 0
    # Resolved configuration with its seed, command line, versions, machine, and state of the repository.
    cfg = TrainCfg.from_dict(json.loads((run / "config.json").read_text()), None)
    assert (cfg.task_id, cfg.run.seed, cfg.run.num_envs) == ("so101-paper", 5, 4)
    assert (run / "command.txt").read_text().count("\n") == 1
    versions = json.loads((run / "versions.json").read_text())
    assert {"python", "packages", "machine", "git"} <= versions.keys()
    assert {"torch", "mujoco", "numpy"} <= versions["packages"].keys()
    assert versions["machine"]["cores"] >= 1
    assert (run / "git.diff").is_file()
    # Curves, policies, evaluation and video.
    names = ("metrics.jsonl", "training_summary.json", "eval.json", "report.html", "video.mp4")
    for name in names:
        assert (run / name).stat().st_size > 0, name
    for name in ("tensorboard", "checkpoints", "best_model", "final_model"):
        assert any((run / name).iterdir()), name
