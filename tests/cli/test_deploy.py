"""`residual-rl deploy` on the simulated arm: episodes, dry runs, limits, signals, and wrong flags."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_runs import CLI_TINY

from residual_rl.cli import deploy
from residual_rl.cli.main import main
from residual_rl.errors import ConfigError
from residual_rl.residual_env import ResidualEnv
from residual_rl.utils.console import Console
from residual_rl.utils.signals import StopRequest

SIM = ["--task", "so101-paper", "--sim", "--no-real-time"]


def deployed(tmp_path: Path, *words: str) -> dict:
    folder = tmp_path / "out"
    assert main(["deploy", *words, "--output-dir", str(folder)]) == 0
    return json.loads((folder / "deploy.json").read_text())


def test_deploy__a_base_policy_solves_the_task_on_the_simulated_arm(tmp_path, capsys):
    record = deployed(tmp_path, "jacobian", *SIM)
    assert (record["reason"], record["stop_failed"]) == ("done", None)
    assert [episode["success_once"] for episode in record["episodes"]] == [1.0]
    assert record["steps"] == record["commands"] == record["episodes"][0]["episode_length"]
    assert record["timing"]["jitter"]["worst"] < 1e-9  # simulated time
    assert 0 < record["timing"]["latency"]["median"] <= record["timing"]["latency"]["worst"]
    output = capsys.readouterr().out
    assert "the arm is held where it is, with torque on" in output
    assert "shoulder_pan" in output


def test_deploy_dry_run__shows_what_would_be_sent_and_sends_nothing(tmp_path, capsys, monkeypatch):
    from residual_rl.tasks.so101_paper.simulated_arm import SimulatedArm

    sent = []
    for name in ("command", "hold", "torque_off"):
        monkeypatch.setattr(SimulatedArm, name, lambda *args, name=name: sent.append(name))
    record = deployed(tmp_path, "jacobian", *SIM, "--dry-run", "--seconds", "1")
    assert sent == []
    assert record["dry_run"]
    assert record["steps"] == 31
    output = capsys.readouterr().out
    assert "would be sent" in output
    assert "nothing was sent" in output


def test_deploy__a_misspelt_pose_source_is_an_error_before_lerobot_is_needed(tmp_path, capsys):
    robot = ["--robot.type", "so101_follower", "--pose-source", "no_such:pose"]
    assert main(["deploy", "jacobian", "--task", "so101-paper", *robot, "--output-dir", str(tmp_path)]) == 2
    assert "No module named 'no_such'" in capsys.readouterr().err


def test_deploy__every_limit_that_acted_is_recorded_with_what_it_changed(tmp_path, caplog):
    record = deployed(tmp_path, "jacobian", *SIM, "--max-jump", "0.005", "--seconds", "2")
    rows = list(csv.DictReader((tmp_path / "out" / "limits.csv").open()))
    assert {row["limit"] for row in rows} == {"jump"}
    for row in rows:  # in the robot's units
        change = float(row["sent"]) - float(row["wanted"])
        assert change == pytest.approx(float(row["changed_by"]), abs=2e-4)
    counts = {name: seen["count"] for name, seen in record["limits"]["jump"].items()}
    assert sum(counts.values()) == len(rows) > 0
    assert "limit jump" in caplog.text


@pytest.mark.slow
def test_deploy__a_run_deploys_what_it_selected_with_the_limits_of_its_training(
    tmp_path, capsys, monkeypatch
):
    run = tmp_path / "run"
    flags = [*CLI_TINY, "--total-timesteps", "32", "--eval-freq", "0", "--safety", "--max-jump", "0.01"]
    assert main(["train", "so101-paper", *flags, "--output-dir", str(run)]) == 0
    scales = []
    step = ResidualEnv.step
    monkeypatch.setattr(
        ResidualEnv, "step", lambda self, action: scales.append(self.residual_scale) or step(self, action)
    )
    capsys.readouterr()
    record = deployed(tmp_path, str(run), "--sim", "--no-real-time", "--seconds", "1")
    assert record["safety"]["max_jump"] == 0.01
    assert "best_model" in capsys.readouterr().out
    assert len(set(scales)) == 1
    summary = json.loads((run / "training_summary.json").read_text())["deployment"]
    assert (scales[0] == 0.0) is (summary["policy"] == "base")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["jacobian", "--task", "so101-paper"], "deploy needs an arm"),
        (["jacobian"], "a base policy needs a task"),
        (["nothing", "--sim"], "neither a run folder nor a base policy"),
        (["jacobian", *SIM, "--robot.type", "so101_follower"], "no --robot flags"),
        (["jacobian", *SIM, "--pose-source", "my_camera:sheet"], "a simulated arm is its own pose source"),
        (["jacobian", *SIM, "--workspace", "1", "0", "0", "1", "0", "1"], "workspace"),
        (["jacobian", *SIM, "--at-exit", "drop"], "drop"),
    ],
)
def test_deploy__wrong_flags_are_one_clear_line(words, message, tmp_path, capsys):
    try:
        code = main(["deploy", *words, "--output-dir", str(tmp_path / "out")])
    except SystemExit as error:
        code = error.code
    assert code == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_deploy__a_signal_stops_the_arm_and_leaves_the_record(number, tmp_path):
    command = [sys.executable, "-m", "residual_rl.cli.main", "deploy", "jacobian", "--task", "so101-paper"]
    words = ["--sim", "--episodes", "50", "--output-dir", str(tmp_path / "out")]
    process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, env=os.environ.copy())
    csv_file = tmp_path / "out" / "limits.csv"
    deadline = time.monotonic() + 60
    while not csv_file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    record = json.loads((tmp_path / "out" / "deploy.json").read_text())
    assert record["reason"] == "stopped by a signal"
    assert record["stop_failed"] is None


def test_deploy_episodes__begin_on_a_real_arm_when_somebody_presses_enter(monkeypatch):
    flags, settings = deploy.DeployFlags(), SimpleNamespace(loop=SimpleNamespace(episodes=3))

    def begins(number: int, typed: bytes, stopped: int | None = None) -> bool:
        reads, writes = os.pipe()
        os.write(writes, typed)
        os.close(writes)
        with os.fdopen(reads) as terminal:
            monkeypatch.setattr(sys, "stdin", terminal)
            return deploy._begin(object(), number, flags, settings, StopRequest(stopped), Console())

    assert begins(0, b"")
    assert begins(1, b"\n")
    assert not begins(1, b"", stopped=signal.SIGINT)
    with pytest.raises(ConfigError, match="nobody can press Enter"):
        begins(1, b"")
