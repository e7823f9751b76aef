"""Promise 6: evaluation uses the env settings of training unless changed; reports show the changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import CLI_TINY, config

from residual_rl.cli.main import main
from residual_rl.runner import Runner
from residual_rl.runs.run_folder import RunFolder


def test_runner__evaluates_with_the_env_settings_of_training(tmp_path: Path) -> None:
    cfg = config(tolerance=0.07)
    with RunFolder(tmp_path / "run").start(cfg.to_dict()) as folder:
        runner = Runner(cfg, folder)
        trained, evaluated = runner.env.vec_env.task.cfg, runner.eval_env.vec_env.task.cfg
        runner.env.close()
        runner.eval_env.close()
    assert trained == evaluated == cfg.task
    assert trained.tolerance == 0.07


@pytest.mark.slow
def test_eval__uses_the_settings_of_training_and_reports_others(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = [*CLI_TINY, "--total-timesteps", "32", "--eval-freq", "0", "--tolerance", "0.08"]
    assert main(["train", "so101-paper", *flags, "--output-dir", str(run)]) == 0
    for changes, expected in ([], {}), (["--tolerance", "0.01"], {"task.tolerance": [0.08, 0.01]}):
        assert main(["eval", str(run), "--n-episodes", "2", *changes]) == 0
        settings = json.loads((run / "eval.json").read_text())["settings"]
        assert settings["changed_from_training"] == expected
        assert settings["task"]["max_episode_steps"] == 20
    assert "task.tolerance = 0.01 (was 0.08)" in (run / "report.html").read_text()
