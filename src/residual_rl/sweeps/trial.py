"""A trial of a sweep as processes of its own: `residual-rl train`, or what resumes it, and then `residual-rl eval`.

    python -m residual_rl.sweeps.trial PARENT COMMAND…

runs a command of `residual-rl` that ends with the process PARENT: it gets a SIGTERM, as it would from a user, and saves.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.sweeps.grid import State, Trial, is_evaluated, is_trained
from residual_rl.utils.files import make_folder, write_atomically

STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL}
"""Exit codes of a process that was told to stop."""
_PR_SET_PDEATHSIG = 1
_TAIL = 1 << 16
"""How much of the end of a file of figures is looked at [bytes]."""


@dataclass(frozen=True)
class Progress:
    """Where a trial stands."""

    state: State
    step: int = 0
    """Env steps done."""
    success: float | None = None
    """Success rate of the last evaluation in training."""
    speed: float = 0.0
    """Env steps per second."""
    reason: str = ""
    """Why it failed."""


class TrialProcess:
    """Runs what is left of a trial, one process after the other.

    Args:
        trial: the trial.
        cwd: folder that relative paths among its flags are from.
    """

    def __init__(self, trial: Trial, cwd: Path | str = "."):
        self.trial, self._cwd = trial, Path(cwd)
        self._process: subprocess.Popen[bytes] | None = None
        self._what: State = "waiting"

    def poll(self, seconds: float = 1.0) -> Progress:
        """Start what is next where nothing runs, and wait for its end, at most `seconds`. A trial that ended stays as it is."""
        trial = self.trial
        if self._process is None:
            command = next_command(trial)
            if command is None:
                trial.failure_file.unlink(missing_ok=True)
                return self._progress("finished")
            self._what = "evaluating" if command[0] == "eval" else "running"
            self._start(command)
        assert self._process is not None
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return self._progress(self._what)
        self._process = None
        if code == 0:
            return self.poll(0.0) if self._what == "evaluating" else self._progress("evaluating")
        if code in STOPPED:
            return self._progress("interrupted")
        reason = last_line(trial.log) or f"its process ended with code {code}"
        make_folder(trial.failure_file.parent)
        write_atomically(trial.failure_file, reason + "\n")
        return self._progress("failed", reason)

    def stop(self) -> None:
        """Let the training save, and wait until it has."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _start(self, command: Sequence[str]) -> None:
        log = self.trial.log
        make_folder(log.parent)
        threads = str(self.trial.cpus)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        with log.open("ab") as file:
            file.write(f"$ residual-rl {' '.join(command)}\n".encode())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "residual_rl.sweeps.trial", str(os.getpid()), *command],
                cwd=self._cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for the sweep, which passes it on
            )

    def _progress(self, state: State, reason: str = "") -> Progress:
        return Progress(state, **figures_of(self.trial), reason=reason)


def next_command(trial: Trial) -> list[str] | None:
    """The arguments of `residual-rl` that bring a trial on; None where it is finished. Removes a run folder without a checkpoint."""
    run = trial.run
    first, count = trial.eval_seeds
    if is_trained(trial):
        if is_evaluated(trial):
            return None
        threads = ["--num-threads", str(trial.cpus)]
        return ["eval", str(run.path), "--n-episodes", str(count), "--first-seed", str(first), *threads]
    if CheckpointFolder(run.checkpoints).files():
        trusts = any(word.replace("_", "-").endswith("trust-checkpoint") for word in trial.train)
        return ["train", "--resume", str(run.path), *(["--trust-checkpoint"] if trusts else [])]
    if run.path.exists() and not run.held:
        shutil.rmtree(run.path)  # it ended before its first checkpoint: there is nothing to go on with
    return ["train", *trial.train, "--output-dir", str(run.path)]


def figures_of(trial: Trial) -> dict[str, Any]:
    """Step, success and speed, as the run's figures tell them."""
    found: dict[str, Any] = {}
    names = {"step": "step", "time/fps": "speed", "eval/success_rate": "success"}
    for row in _last_rows(trial.run.metrics_file):  # the newest first
        for tag, name in names.items():
            if row.get(tag) is not None:
                found.setdefault(name, row[tag])
        if len(found) == len(names):
            break
    return found


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """The rows at the end of a file of figures, the newest first; a line that is being written is left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    whole = lines[1 if size > _TAIL else 0 : -1]
    return [json.loads(line) for line in reversed(whole) if line]


def last_line(path: Path) -> str:
    """The last line that says something: an error of `residual-rl`, if there is one among the last few."""
    try:
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return ""
    marker = "residual-rl: error: "
    errors = [line.removeprefix(marker) for line in lines[-20:] if line.startswith(marker)]
    return errors[-1] if errors else lines[-1] if lines else ""


def wait_until_free(trial: Trial, seconds: float) -> bool:
    """Wait until no process writes the trial's run, such as one that an earlier driver left and that is saving. Whether that came."""
    end = time.monotonic() + seconds
    while trial.run.held:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _end_with(parent: int) -> None:
    """Get a SIGTERM when the process `parent`, which started this one, ends in whatever way. Linux alone has that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    _end_with(int(sys.argv[1]))
    sys.argv = ["residual-rl", *sys.argv[2:]]  # a run folder tells the command
    from residual_rl.cli.main import main

    sys.exit(main())
