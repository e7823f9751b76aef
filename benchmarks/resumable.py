"""Parts of long benchmarks: files, models, runs and evaluations that are made unless they exist."""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from types import FrameType

from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import make_folder
from residual_rl.utils.signals import STOP_SIGNALS


class CommandError(SystemExit):
    """A command failed; it has printed the reason. If nothing catches this, it ends the benchmark with the
    same exit code."""


def run_cli(*arguments: str, python: str = sys.executable) -> None:
    """Run `residual-rl` with the interpreter `python`.

    A signal that asks this process to stop is passed on, so that a training saves its state, and then ends
    this process too. Raises `CommandError`.
    """
    received: list[int] = []
    process = subprocess.Popen([python, "-m", "residual_rl.cli.main", *arguments])

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        process.send_signal(number)

    # under `nohup`, SIGHUP stays ignored
    earlier = {
        number: signal.signal(number, pass_on)
        for number in STOP_SIGNALS
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        code = process.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if received:
        raise SystemExit(128 + received[0])
    if code != 0:
        raise CommandError(code if code > 0 else 128 - code)


def is_finished(folder: Path) -> bool:
    """Whether the training in `folder`, of a residual or of an imitation policy, has finished."""
    try:
        return bool(json.loads(RunFolder(folder).summary_file.read_text(encoding="utf-8"))["finished"])
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Context in which no other process makes `path`; it is waited for."""
    make_folder(path.parent)
    with (path.parent / f".{path.name}.lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_file(path: Path, arguments: Sequence[str], python: str = sys.executable) -> None:
    """Create `path` with `residual-rl`, unless it exists.

    It is created in a temporary folder and then moved, so that an existing file is complete.
    """
    with exclusive(path):
        if path.exists():
            return
        with tempfile.TemporaryDirectory(dir=path.parent) as making:
            run_cli(*arguments, "--out", f"{making}/{path.name}", python=python)
            # Move files that belong to it first.
            for made in sorted(Path(making).iterdir(), key=lambda made: made.name == path.name):
                made.rename(path.parent / made.name)


def imitate(model: Path, demos: Path, arguments: Sequence[str], python: str = sys.executable) -> None:
    """Train an imitation policy on the file `demos` in the folder `model`, or resume it, unless it is
    finished."""
    with exclusive(model):
        if not is_finished(model):
            how = ["--resume"] if RunFolder(model).config_file.exists() else arguments
            run_cli("imitate", str(demos), "--out", str(model), *how, python=python)


def train_run(run: RunFolder, arguments: Sequence[str], seed: int, python: str = sys.executable) -> None:
    """Train or resume `run`, unless it is finished. `arguments` are those of `residual-rl train`."""
    if is_finished(run.path):
        return
    fresh = [*arguments, "--seed", str(seed), "--output-dir", str(run.path)]
    resumed = ["--resume", str(run.path)]
    run_cli("train", *(resumed if run.config_file.exists() else fresh), python=python)


def evaluate_run(run: RunFolder, n_episodes: int, *compare: str, python: str = sys.executable) -> None:
    """Evaluate the best model of `run` on fresh episodes, unless that is done. `compare` are flags."""
    if run.eval_file.exists():
        evaluation = json.loads(run.eval_file.read_text(encoding="utf-8"))
        if len(evaluation["episode_seeds"]) >= n_episodes:
            return
    run_cli("eval", str(run.path), "--n-episodes", str(n_episodes), *compare, python=python)


def outcomes(run: RunFolder) -> dict[int, list[float]]:
    """The outcome of each episode in the evaluations during training, by env steps, in the order of the
    seeds. An evaluation that stopped early has the first of them only."""
    files = sorted(run.eval_results.glob("step_*.json"))
    return {
        int(file.stem.removeprefix("step_")): json.loads(file.read_text(encoding="utf-8"))["success_once"]
        for file in files
    }


def training_curve(run: RunFolder) -> list[list[float]]:
    """[env steps, success rate, number of episodes] of each evaluation of a run."""
    return [[step, fmean(values), len(values)] for step, values in outcomes(run).items()]
