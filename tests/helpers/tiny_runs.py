"""Training runs that take a second, and comparisons of them."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from residual_rl.cli.main import main
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.runner import Runner
from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.runs.logger import read_metrics
from residual_rl.runs.run_folder import RunFolder

TINY: dict[str, Any] = {
    "num_envs": 4,
    "num_steps": 8,
    "minibatch_size": 16,
    "num_epochs": 2,
    "hidden_sizes": (8, 8),
    "max_episode_steps": 20,
    "eval_episodes": 2,
    "confirm_episodes": 8,
    "total_timesteps": 256,
    "eval_freq": 96,
    "save_freq": 32,
    "num_threads": 1,
    # Some sheets lie in the rectangle from the start, so that episodes terminate as well as being cut off.
    "tolerance": 0.08,
    "success_hold_steps": 5,
}
"""32 env steps per iteration, 8 iterations."""
_OTHER = ("minibatch_size", "num_epochs", "num_steps")
OFF_POLICY_TINY = {name: value for name, value in TINY.items() if name not in _OTHER} | {
    "num_steps": 2,
    "batch_size": 8,
    "log_freq": 24,
}
OFF_POLICY_TINY |= {
    "warmup_steps": 16,
    "learning_starts": 16,
    "actor_starts": 32,
    "utd": 0.25,
    "buffer_size": 96,
}
"""8 env steps per iteration, 32 iterations."""

CLI_TINY = [
    "--num-envs",
    "4",
    "--num-steps",
    "8",
    "--minibatch-size",
    "16",
    "--num-epochs",
    "2",
    "--hidden-sizes",
    "8",
    "8",
]
CLI_TINY += ["--max-episode-steps", "20", "--eval-episodes", "2", "--confirm-episodes", "8"]
FAILING_TINY = [*CLI_TINY, "--num-threads", "1", "--save-freq", "32", "--eval-freq", "0"]


def slow(*values: Any) -> list[Any]:
    """Parameters that only the slow tier tests; a tuple has the values of several arguments."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else [value]), marks=pytest.mark.slow)
        for value in values
    ]


def config(base_policy: str = "jacobian", learner: str = "ppo", **settings: Any) -> TrainCfg:
    tiny = TINY if learner == "ppo" else OFF_POLICY_TINY
    return replace_fields(TrainCfg.default("so101-paper", base_policy, learner), {**tiny, **settings})


def train(path: Path, stop_at: int | None = None, resume: bool = False, **settings: Any) -> Runner:
    """Train in this process; `stop_at` sends it a SIGTERM in the iteration that reaches this step."""
    cfg, folder = config(**settings), RunFolder(path)
    with folder.resume() if resume else folder.start(cfg.to_dict()):
        runner = Runner(cfg, folder, resume=resume)
        if stop_at is not None:
            update = runner._update

            def update_and_stop() -> Any:
                if runner.progress.step == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                return update()

            runner._update = update_and_stop  # type: ignore[method-assign]
        summary = runner.learn()
        runner.env.close()
        runner.eval_env.close()
    assert summary["signal"] == (None if stop_at is None else signal.SIGTERM)
    assert summary["steps"] == (cfg.run.total_timesteps if stop_at is None else stop_at)
    return runner


def flat(state: Any, key: str = "") -> dict[str, Any]:
    if isinstance(state, dict):
        return {k: v for name, value in state.items() for k, v in flat(value, f"{key}/{name}").items()}
    if isinstance(state, list):
        return {k: v for i, value in enumerate(state) for k, v in flat(value, f"{key}/{i}").items()}
    return {key: state}


def different(a: Any, b: Any) -> list[str]:
    """Keys of two nested states that differ in any bit."""
    x, y = flat(a), flat(b)
    same = {
        k: torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype if isinstance(x[k], Tensor) else x[k] == y[k]
        for k in x.keys() & y.keys()
    }
    return sorted({k for k, equal in same.items() if not equal} | (x.keys() ^ y.keys()))


def last_state(path: Path) -> Any:
    latest = CheckpointFolder(path / "checkpoints").latest()
    assert latest is not None
    return latest[1]


def metric_rows(path: Path) -> list[dict[str, Any]]:
    """The logged rows without times."""
    return [
        {k: v for k, v in row.items() if not k.startswith("time/")}
        for row in read_metrics(path / "metrics.jsonl")
    ]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def cpu_seconds(*command: str, **options: Any) -> tuple[float, subprocess.CompletedProcess[str]]:
    """CPU time of a command and its children [s], and the completed process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


Fails = Callable[..., str]
_NO_ERRORS = ("residual-rl: WARNING", "WARNING: Nan, Inf or huge value")
"""The beginnings of warnings of the logger and of MuJoCo."""


def failure(capfd: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 2) -> str:
    """Run a command that must fail with `code`, and return its one line of error message."""
    capfd.readouterr()
    assert main([str(a) for a in arguments]) == code
    lines = [line for line in capfd.readouterr().err.splitlines() if line and not line.startswith(_NO_ERRORS)]
    # Without the lines of progress.
    errors = [line for line in lines if not re.match(r"(train|base|residual|zero|probe): ", line)]
    assert len(errors) == 1, errors
    assert errors[0].startswith("residual-rl: error: ")
    return errors[0].removeprefix("residual-rl: error: ")
