"""The processes of a trial: `residual-rl train`, new or resumed, and then `residual-rl eval`."""

from __future__ import annotations

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
from residual_rl.utils.consent import CONFIRM
from residual_rl.utils.files import encode, make_folder, parse_json, write_atomically
from residual_rl.utils.signals import STOP_SIGNALS
from residual_rl.utils.text import shell_command

ENTRY_POINT = "residual_rl.cli.trial"
"""Module that the processes of a trial run: a command of `residual-rl` that ends with its parent process."""
STOPPED = {-signal.SIGKILL, *(code for number in STOP_SIGNALS for code in (128 + number, -number))}
"""Exit codes of a process that was stopped or killed."""
WAIT_FOR_EARLIER = 120.0
"""Time limit for a process of an interrupted sweep that is still saving [s]."""
_TAIL = 1 << 16
"""Size of the part at the end of a metrics file that is read [bytes]."""


@dataclass(frozen=True)
class TrialProgress:
    """State and metrics of a trial."""

    state: State
    step: int = 0
    """Env steps so far."""
    success: float | None = None
    """Success rate of the last evaluation during training."""
    speed: float = 0.0
    """Env steps per second."""
    reason: str = ""
    """Reason of a failure."""

    @property
    def ended(self) -> bool:
        """Whether no further process of the trial will run."""
        return self.state in ("finished", "failed", "interrupted")


class TrialProcess:
    """Runs the remaining processes of a trial, one after the other.

    Args:
        trial: the trial.
        cwd: folder that relative paths in its flags refer to.
    """

    def __init__(self, trial: Trial, cwd: Path | str = "."):
        self.trial = trial
        self._cwd = Path(cwd)
        self._process: subprocess.Popen[bytes] | None = None
        self._state: State = "waiting"
        self._start_by = time.monotonic() + WAIT_FOR_EARLIER

    def poll(self, seconds: float = 1.0) -> TrialProgress:
        """Start the next process if none is running, wait at most `seconds` for its end, and return the
        progress."""
        # Start the next process, once no other process uses the run folder.
        trial = self.trial
        if self._process is None:
            if not wait_until_free(trial, seconds) and time.monotonic() < self._start_by:
                return self._progress("waiting")
            command = next_command(trial)
            if command is None:
                trial.failure_file.unlink(missing_ok=True)
                return self._progress("finished")
            self._state = "evaluating" if command[0] == "eval" else "running"
            self._process = self._start(command)

        # Wait for its end.
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return self._progress(self._state)
        self._process = None

        # Continue with the evaluation, or report how the trial ended.
        if code == 0:
            return self.poll(0.0) if self._state == "evaluating" else self._progress("evaluating")
        if code in STOPPED:
            return self._progress("interrupted")
        reason = last_line(trial.log) or f"its process ended with code {code}"
        make_folder(trial.failure_file.parent)
        write_atomically(trial.failure_file, reason + "\n")
        return self._progress("failed", reason)

    def terminate(self) -> None:
        """Make the running process save and end, without waiting for it."""
        if self._process is not None:
            self._process.terminate()

    def stop(self) -> None:
        """Make the running process save and end, and wait for its end."""
        self.terminate()
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start `residual-rl` with the arguments `command`; its output is appended to the trial's log."""
        log = self.trial.log
        make_folder(log.parent)
        confirmed = [word for pair in self.trial.confirmations for word in (CONFIRM, pair)]
        threads = str(self.trial.cpus)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("ab") as file:
            file.write(encode(f"$ {shell_command(*command)}\n"))
            return subprocess.Popen(
                [sys.executable, "-m", ENTRY_POINT, str(os.getpid()), *command, *confirmed],
                cwd=self._cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal reaches only the sweep, which terminates its trials
                start_new_session=True,
            )

    def _progress(self, state: State, reason: str = "") -> TrialProgress:
        return TrialProgress(state, **trial_metrics(self.trial), reason=reason)


def next_command(trial: Trial) -> list[str] | None:
    """Arguments of `residual-rl` for the next process of a trial; None if it is finished.

    Removes a run folder without a checkpoint, which cannot be resumed.
    """
    run = trial.run
    first, count = trial.eval_seeds

    # Evaluate after training.
    if is_trained(trial):
        if is_evaluated(trial):
            return None
        more = ["--num-threads", str(trial.cpus), "--overwrite"]
        return ["eval", str(run.path), "--n-episodes", str(count), "--first-seed", str(first), *more]

    # Resume from the last checkpoint; without one, start again.
    if CheckpointFolder(run.checkpoints).files():
        # Trust is in the run's own settings, if the user's signature covers them.
        return ["train", "--resume", str(run.path)]
    if run.path.exists() and not run.held:
        shutil.rmtree(run.path)
    return ["train", *trial.train, "--output-dir", str(run.path)]


def trial_metrics(trial: Trial) -> dict[str, Any]:
    """The fields `step`, `success` and `speed` of a `TrialProgress` that are in the metrics of the run."""
    found: dict[str, Any] = {}
    fields = {"step": "step", "time/fps": "speed", "eval/success_rate": "success"}
    for row in _last_rows(trial.run.metrics_file):
        for tag, field in fields.items():
            if row.get(tag) is not None:
                found.setdefault(field, row[tag])
        if len(found) == len(fields):
            break
    return found


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """Rows at the end of a metrics file, the newest first, without an incomplete last line."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    whole = lines[1 if size > _TAIL else 0 : -1]
    return [parse_json(line) for line in reversed(whole) if line]


def last_line(path: Path) -> str:
    """The last error of `residual-rl` in a log, or else its last line; empty without a log."""
    try:
        lines = [
            line.strip()
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
            if line.strip()
        ]
    except FileNotFoundError:
        return ""
    marker = "residual-rl: error: "
    errors = [line.removeprefix(marker) for line in lines[-20:] if line.startswith(marker)]
    return errors[-1] if errors else lines[-1] if lines else ""


def wait_until_free(trial: Trial, seconds: float) -> bool:
    """Wait at most `seconds` until no process uses the run folder of `trial`. Returns whether it is free."""
    end = time.monotonic() + seconds
    while trial.run.held:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
