"""Sweeps as subprocesses and with Ray: killed, resumed, interrupted by Ctrl-C, terminated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import CLI_TINY

from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.runs.run_folder import RunFolder
from residual_rl.sweeps.executor import check_resources, require_executor

TRAIN = [*CLI_TINY, "--tolerance", "0.08", "--save-freq", "32", "--eval-freq", "0"]
LOCALLY: list[str] = []
WITH_RAY = ["--ray-address", "local"]


@pytest.fixture(params=[LOCALLY, WITH_RAY], ids=["locally", "with Ray"])
def executor(request: pytest.FixtureRequest) -> list[str]:
    """The flags that choose an executor."""
    if request.param:
        pytest.importorskip("ray", reason="needs the extra `ray`")
    flags: list[str] = request.param
    return flags


def spawn(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "residual_rl.cli.main", "sweep", *arguments], stdout=file, stderr=file
        )


def wait_for(
    condition: Callable[[], Any], process: subprocess.Popen[bytes] | None, log: Path, seconds: float = 400.0
) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended early with {process.returncode}: {log.read_text()}")
        assert time.monotonic() < end, f"waited too long: {log.read_text()}"
        time.sleep(0.1)


def step(run: RunFolder) -> int:
    return max(CheckpointFolder(run.checkpoints).files(), default=-1)


def trial_pid(run: RunFolder) -> int:
    """The process that has locked the run folder."""
    return int((run.path / ".lock").read_text().split()[1])


@pytest.mark.slow
def test_run_trials__killed_then_resumed_then_interrupted(tmp_path: Path, executor: list[str]) -> None:
    """Two trials, one of a few hundred steps and one of hours. The sweep is killed after the short one has
    finished."""
    out, log = tmp_path / "sweep", tmp_path / "log"
    flags = ["--grid", "total_timesteps=256,10000000", "--seeds", "1", "--n-episodes", "4", *executor]
    short, long = (RunFolder(out / "trials" / f"total_timesteps={n},seed=1") for n in (256, 10_000_000))
    process = spawn(log, "so101-paper", *flags, "--output-dir", str(out), *TRAIN)
    try:
        # Kill the sweep: the running trial saves and ends.
        wait_for(lambda: short.eval_file.exists() and step(long) > 0, process, log)
        process.kill()
        process.wait()
        wait_for(lambda: not long.held, None, log, 60.0)
        assert json.loads(long.summary_file.read_text())["signal"] == signal.SIGTERM
        before, done = step(long), short.eval_file.stat().st_mtime_ns

        # Resume it, and interrupt it as Ctrl-C does.
        process = spawn(log, "--resume", str(out), *executor)
        wait_for(lambda: step(long) > before, process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
    finally:
        if process.poll() is None:
            process.kill()
    printed = log.read_text()
    assert f"residual-rl sweep --resume {out}" in printed
    assert "1 of 2 trials finished" in printed
    assert "Traceback" not in printed
    assert not long.held
    summary = json.loads(long.summary_file.read_text())
    assert (summary["signal"], summary["steps"]) == (signal.SIGTERM, step(long))
    assert short.eval_file.stat().st_mtime_ns == done  # the finished trial was not run again
    ranking = json.loads((out / "report.json").read_text())["ranking"]
    assert [ranked["point"] for ranked in ranking] == ["total_timesteps=256"]


@pytest.mark.slow
def test_run_trials__sigterm_saves_and_a_killed_trial_is_interrupted(
    tmp_path: Path, executor: list[str]
) -> None:
    """Two trials of hours: one is killed, which leaves the other running; then the sweep gets a SIGTERM."""
    out, log = tmp_path / "sweep", tmp_path / "log"
    flags = ["--grid", "total_timesteps=10000000", "--seeds", "2", "--n-episodes", "4", *executor]
    killed, run = (RunFolder(out / "trials" / f"total_timesteps=10000000,seed={seed}") for seed in (1, 2))
    process = spawn(log, "so101-paper", *flags, "--output-dir", str(out), *TRAIN)
    try:
        wait_for(lambda: step(run) > 0 and step(killed) > 0, process, log)
        os.kill(trial_pid(killed), signal.SIGKILL)
        wait_for(lambda: "seed=1  interrupted" in log.read_text(), process, log)
        before = step(run)
        wait_for(lambda: step(run) > before, process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
    finally:
        if process.poll() is None:
            process.kill()
    assert f"residual-rl sweep --resume {out}" in log.read_text()
    assert not killed.summary_file.exists()
    assert json.loads(run.summary_file.read_text())["steps"] == step(run)
    states = [trial["state"] for trial in json.loads((out / "report.json").read_text())["trials"]]
    assert states == ["interrupted", "interrupted"]
    assert (out / "report.md").is_file()


def test_require_executor__ray_is_needed_for_clusters_and_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    require_executor(None, 0.0)
    for address, gpus in (("auto", 0.0), ("local", 0.0), (None, 0.5)):
        with pytest.raises(
            MissingDependencyError, match=r"pip install 'residual-rl\[ray\]'`, or leave out --ray-address"
        ):
            require_executor(address, gpus)


def test_check_resources__more_than_the_machine_has() -> None:
    check_resources({"CPU": 4.0, "GPU": 1.0}, 4, 0.25)
    with pytest.raises(
        ConfigError, match=r"--cpus-per-trial 9 is more than this machine has \(4 CPU cores\); give at most 4"
    ):
        check_resources({"CPU": 4.0}, 9, 0.0)
    with pytest.raises(ConfigError, match=r"--gpus-per-trial 0.5 is more than this machine has \(0 GPUs\)"):
        check_resources({"CPU": 4.0}, 1, 0.5)
