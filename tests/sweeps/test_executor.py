"""A sweep through Ray itself, on this machine: killed, gone on with, interrupted by Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import CLI_TINY

from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.runs.run_folder import RunFolder

pytest.importorskip("ray.tune", reason="needs the extra `ray`")

TRAIN = [*CLI_TINY, "--tolerance", "0.08", "--save-freq", "32", "--eval-freq", "0"]


def spawn(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, "-m", "residual_rl.cli.main", "sweep", *arguments], stdout=file, stderr=file)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes] | None, log: Path, seconds: float = 400.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended early with {process.returncode}: {log.read_text()}")
        assert time.monotonic() < end, f"waited too long: {log.read_text()}"
        time.sleep(0.1)


def step(run: RunFolder) -> int:
    return max(CheckpointFolder(run.checkpoints).files(), default=-1)


@pytest.mark.slow
def test_a_sweep_survives_a_kill_goes_on_and_saves_at_ctrl_c(tmp_path: Path) -> None:
    """Two trials, one of a few hundred steps and one of hours; the driver is killed once the short one has finished."""
    out, log = tmp_path / "sweep", tmp_path / "log"
    flags = ["--grid", "total_timesteps=256,10000000", "--seeds", "1", "--n-episodes", "4"]
    short, long = (RunFolder(out / "trials" / f"total_timesteps={n},seed=1") for n in (256, 10_000_000))
    process = spawn(log, "so101-paper", *flags, "--output-dir", str(out), *TRAIN)
    try:
        wait_for(lambda: short.eval_file.exists() and step(long) > 0, process, log)
        process.kill()
        process.wait()
        wait_for(lambda: not long.held, None, log, 60.0)  # the trial saves, and ends with its driver
        assert json.loads(long.summary_file.read_text())["signal"] == signal.SIGTERM
        before, done = step(long), short.eval_file.stat().st_mtime_ns

        process = spawn(log, "--resume", str(out))
        wait_for(lambda: step(long) > before, process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
    finally:
        if process.poll() is None:
            process.kill()
    said = log.read_text()
    assert f"Go on with: residual-rl sweep --resume {out}" in said
    assert "1 of 2 trials finished" in said
    assert "Traceback" not in said
    assert not long.held
    summary = json.loads(long.summary_file.read_text())
    assert (summary["signal"], summary["steps"]) == (signal.SIGTERM, step(long))
    assert short.eval_file.stat().st_mtime_ns == done  # what had finished was not run again
    ranking = json.loads((out / "report.json").read_text())["ranking"]
    assert [ranked["point"] for ranked in ranking] == ["total_timesteps=256"]
    assert not (out / "ray").exists()


@pytest.mark.slow
def test_sigterm_lets_the_trial_save_and_leaves_a_report(tmp_path: Path) -> None:
    """Ray has a handler of its own for it, which would abort the process."""
    out, log = tmp_path / "sweep", tmp_path / "log"
    flags = ["--grid", "total_timesteps=10000000", "--seeds", "1", "--n-episodes", "4"]
    run = RunFolder(out / "trials" / "total_timesteps=10000000,seed=1")
    process = spawn(log, "so101-paper", *flags, "--output-dir", str(out), *TRAIN)
    try:
        wait_for(lambda: step(run) > 0, process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
    finally:
        if process.poll() is None:
            process.kill()
    said = log.read_text()
    assert f"Go on with: residual-rl sweep --resume {out}" in said
    assert json.loads(run.summary_file.read_text())["steps"] == step(run)
    assert (out / "report.md").is_file()
    assert not (out / "ray").exists()
