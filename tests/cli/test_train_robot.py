"""`residual-rl train-robot`: errors before anything is written, and resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import failure

from residual_rl.cli.main import main
from residual_rl.cli.train_robot import parse

SIM = ["--sim", "--no-real-time", "--operator", "none", "--reset", "automatic"]
TINY = ["--max-episode-steps", "10", "--hidden-sizes", "8", "--batch-size", "8", "--buffer-size", "256"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "train-robot needs an arm: give --robot.type"),
        (["--no-real-time"], "a robot moves in real time: --no-real-time needs --sim"),
        (["--sim", "--robot.type", "x"], "--sim is for a simulated arm"),
        (["--sim", "--pose-source", "a:b"], "a simulated arm is its own pose source"),
        (["--sim", "--num-envs", "2"], "num_envs must be 1"),
        (
            [*SIM, "--learner", "ppo", "--minibatch-size", "64"],
            "learner 'ppo' cannot learn beside a robot: choose sac",
        ),
        ([*SIM, "--bootstrap-at-done", "never"], "choose --bootstrap-at-done truncated"),
        ([*SIM, "--success-source", "no_such:thing"], "success_source must be MODULE:FUNCTION"),
    ],
)
def test_train_robot__errors_leave_no_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    out = tmp_path / "run"
    assert message in failure(capfd, "train-robot", "so101-paper", *flags, "--output-dir", out)
    assert not out.exists()


def test_parse__a_base_policy_without_settings_and_a_task_without_an_arm() -> None:
    cfg, robot, _, _ = parse("maniskill", ["--sim"])
    assert (cfg.base_policy_id, cfg.base, cfg.run.num_envs, robot.sim) == ("zero", None, 1, True)


def test_train_robot__resumes_with_more_steps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    common = [*SIM, "--total-timesteps"]
    assert main(["train-robot", "so101-paper", *common, "15", *TINY, "--output-dir", out]) == 0
    assert "Trained 20 steps" in capfd.readouterr().out
    assert main(["train-robot", "--resume", out, *common, "25"]) == 0
    assert "Trained 30 steps" in capfd.readouterr().out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["robot"]["sim"] is True
    assert config["run"]["total_timesteps"] == 25
    # the other commands know the run
    assert "resume it with: residual-rl train-robot --resume" in failure(capfd, "train", "--resume", out)
    assert main(["eval", out, "--n-episodes", "1", "--num-threads", "1"]) == 0
