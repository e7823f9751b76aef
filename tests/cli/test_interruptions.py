"""Training that is interrupted by signals, kills and full disks, and its memory use."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from full_disk import fill
from tiny_runs import CLI_TINY, config, different, last_state, metric_rows, train

from residual_rl.cli.main import main
from residual_rl.exported_policy import export_policy
from residual_rl.runner import Runner
from residual_rl.runs import checkpoint
from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.runs.run_folder import RunFolder

COMMAND = ("-m", "residual_rl.cli.main")
TOUCH_AT_FIRST_STEP = """
import pathlib, sys
from residual_rl.cli.main import main
from residual_rl.runner import Runner

def touch_and_collect(runner, collect=Runner._collect):
    pathlib.Path(sys.argv[1]).touch()
    return collect(runner)

Runner._collect = touch_and_collect
sys.exit(main(sys.argv[2:]))
"""


def start(path: Path, *flags: str, program: Sequence[str] = COMMAND) -> subprocess.Popen[str]:
    """Start a training process that would take hours."""
    return spawn(
        [
            "train",
            "so101-paper",
            *CLI_TINY,
            "--total-timesteps",
            "10000000",
            "--output-dir",
            str(path),
            *flags,
        ],
        program,
    )


def spawn(arguments: list[str], program: Sequence[str] = COMMAND) -> subprocess.Popen[str]:
    command = [sys.executable, *program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise AssertionError(
                f"the process ended early with {process.returncode}: {process.communicate()[1]}"
            )
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def checkpoints(path: Path) -> list[int]:
    return sorted(CheckpointFolder(path / "checkpoints").files())


def errors(stderr: str) -> list[str]:
    """The lines of stderr except for progress and warnings."""
    return [
        line
        for line in stderr.splitlines()
        if line and not line.startswith(("train: ", "residual-rl: WARNING"))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_train__signal_saves_and_exits_with_its_own_code(
    tmp_path: Path, number: signal.Signals, code: int, processes: list[subprocess.Popen[str]]
) -> None:
    path = tmp_path / "run"
    process = start(path)
    processes.append(process)
    wait_for(lambda: lines(path / "metrics.jsonl") >= 3, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors(stderr) == []
    assert f"residual-rl train --resume {path}" in stdout
    summary = json.loads((path / "training_summary.json").read_text())
    assert (summary["finished"], summary["signal"], summary["model"]) == (False, number, "interrupted_model")
    step = summary["steps"]
    assert checkpoints(path)[-1] == step  # no save was due: it was made for the signal
    assert checkpoint.load(path / "interrupted_model" / "policy.safetensors", "policy")["step"] == step
    assert not (path / "final_model").exists()

    assert main(["train", "--resume", str(path), "--total-timesteps", str(step + 64)]) == 0
    assert json.loads((path / "training_summary.json").read_text())["steps"] == step + 64
    assert [row["step"] for row in metric_rows(path)] == list(range(0, step + 65, 32))
    assert json.loads((path / "config.json").read_text())["run"]["total_timesteps"] == step + 64


@pytest.mark.slow
def test_train__signal_in_the_first_evaluation_leaves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole", total_timesteps=64)
    evaluate = Runner._evaluate

    def evaluate_and_stop(runner: Runner) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(runner)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_evaluate", evaluate_and_stop)
        cfg = config(total_timesteps=64)
        with RunFolder(tmp_path / "run").start(cfg.to_dict()) as folder:
            assert Runner(cfg, folder).learn()["signal"] == signal.SIGINT
    assert checkpoints(tmp_path / "run") == [0]
    train(tmp_path / "run", resume=True, total_timesteps=64)
    assert metric_rows(tmp_path / "run") == metric_rows(tmp_path / "whole")
    assert set(different(last_state(tmp_path / "run"), last_state(tmp_path / "whole"))) == set()


@pytest.mark.parametrize("learner", ["ppo", pytest.param("sac", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_train__run_stopped_before_its_first_checkpoint_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learner: str
) -> None:
    settings: dict[str, Any] = {"learner": learner, "total_timesteps": 128, "save_freq": 96, "log_freq": 0}
    train(tmp_path / "whole", **settings)
    for step in (None, 0, 64):  # before learning, in the first evaluation, after some iterations
        path = tmp_path / f"stopped-{step}"
        cfg = config(**settings)
        RunFolder(path).start(cfg.to_dict()).close()
        with monkeypatch.context() as patch:
            if step is not None:
                patch.setattr(Runner, "_evaluate" if step == 0 else "_update", _interrupted_at(step))
                with RunFolder(path).resume() as folder, pytest.raises(KeyboardInterrupt):
                    Runner(cfg, folder, resume=True).learn()
        assert checkpoints(path) == []
        train(path, resume=True, **settings)
        assert metric_rows(path) == metric_rows(tmp_path / "whole")
        assert different(last_state(path), last_state(tmp_path / "whole")) == []


def _interrupted_at(step: int) -> Callable[[Runner], Any]:
    update = Runner._update

    def update_or_stop(runner: Runner) -> Any:
        if runner.progress.step >= step:
            raise KeyboardInterrupt
        return update(runner)

    return update_or_stop


def test_train__signal_in_the_last_iteration_keeps_the_final_model(tmp_path: Path) -> None:
    train(tmp_path / "run", stop_at=64, total_timesteps=64)
    summary = json.loads((tmp_path / "run" / "training_summary.json").read_text())
    assert (summary["finished"], summary["model"]) == (True, "final_model")
    assert (tmp_path / "run" / "final_model" / "policy.safetensors").is_file()


@pytest.mark.slow
def test_train__second_sigint_ends_a_long_iteration(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    started = tmp_path / "started"
    process = start(
        tmp_path / "run", "--num-steps", "65536", program=["-c", TOUCH_AT_FIRST_STEP, str(started)]
    )
    processes.append(process)
    wait_for(started.exists, process)  # earlier, the first signal would suffice
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None  # the first one waits for the iteration
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors(stderr) == ["residual-rl: interrupted"]


@pytest.mark.slow
def test_train__sigkill_at_any_time_leaves_a_checkpoint_that_resumes(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    path, rng, done = tmp_path / "run", random.Random(3), 0
    for kill in range(3):
        process = (
            spawn(["train", "--resume", str(path)])
            if kill
            else start(path, "--save-freq", "32", "--eval-freq", "64")
        )
        processes.append(process)
        wait_for(lambda: checkpoints(path) and checkpoints(path)[-1] > done, process)  # noqa: B023 (called in this iteration)
        time.sleep(rng.uniform(0.0, 0.6))
        process.kill()
        process.communicate()
        latest = CheckpointFolder(path / "checkpoints").latest()
        assert latest is not None
        assert latest[0] > done
        assert latest[0] == checkpoints(path)[-1]  # the newest is intact
        done = latest[0]
    assert main(["train", "--resume", str(path), "--total-timesteps", str(done + 64)]) == 0
    assert [row["step"] for row in metric_rows(path)] == list(range(0, done + 65, 32))


@pytest.mark.slow
def test_train__full_disk_ends_it_with_one_line_and_an_intact_checkpoint(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    """A file size limit of 4 kB during training acts like a full disk."""
    path = tmp_path / "run"
    process = start(path, "--save-freq", "32")
    processes.append(process)
    wait_for(lambda: len(checkpoints(path)) == 3, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(errors(stderr)) == 1
    assert errors(stderr)[0].startswith("residual-rl: error: cannot write ")
    assert "File too large" in stderr
    resumable(path)


@pytest.mark.slow
def test_train__full_file_system_ends_it_with_one_line_and_an_intact_checkpoint(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True
        ).returncode
    ):
        pytest.skip("needs the right to mount a file system")
    try:
        path = disk / "run"
        process = start(path, "--save-freq", "32")
        processes.append(process)
        wait_for(lambda: len(checkpoints(path)) == 3, process)
        fill(disk / "ballast")
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 2
        assert len(errors(stderr)) == 1
        assert "No space left on device; free some space" in stderr
        (disk / "ballast").unlink()
        resumable(path)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def resumable(path: Path) -> None:
    latest = CheckpointFolder(path / "checkpoints").latest()
    assert latest is not None
    assert latest[0] == checkpoints(path)[-1]
    assert main(["train", "--resume", str(path), "--total-timesteps", str(latest[0] + 32)]) == 0
    assert [row["step"] for row in metric_rows(path)] == list(range(0, latest[0] + 33, 32))


def test_train__second_sigterm_does_not_interrupt_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed sweep sends its trials two SIGTERMs: one from its worker, one from the system when the worker
    has ended."""
    unhandled: list[int] = []
    earlier = signal.signal(signal.SIGTERM, lambda number, _: unhandled.append(number))

    def terminated_again(path: Path, *arguments: Any) -> None:
        if path.name == "interrupted_model":
            os.kill(os.getpid(), signal.SIGTERM)
        export_policy(path, *arguments)

    monkeypatch.setattr("residual_rl.runner.export_policy", terminated_again)
    try:
        train(tmp_path, stop_at=32)
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert unhandled == []
    assert json.loads((tmp_path / "training_summary.json").read_text())["signal"] == signal.SIGTERM


@pytest.mark.slow
def test_train__takes_less_than_1500_megabytes(tmp_path: Path) -> None:
    """One iteration with the default settings and shorter evaluations.

    VmHWM is the peak of this program alone; ru_maxrss includes the memory of the process that forked it, here
    the test run.
    """
    arguments = ["train", "so101-paper", "--total-timesteps", "2048", "--max-episode-steps", "20"]
    arguments += ["--output-dir", str(tmp_path / "run")]
    code = f"from residual_rl.cli.main import main; assert main({arguments!r}) == 0; "
    code += "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    megabytes = int(re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)[-1]) / 1024
    assert megabytes < 1500, f"{megabytes:.0f} MB"
