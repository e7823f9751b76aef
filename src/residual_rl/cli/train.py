"""`residual-rl train`: train a residual into a run folder, or go on with one."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from residual_rl.cli.flags import HELP, has_flag, parts_of, peek, require_target
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.registry import LEARNERS, TASKS
from residual_rl.runner import Runner
from residual_rl.runs.progress_bar import clock_time
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import write_json

QUICK = {
    "num_envs": 8,
    "total_timesteps": 2048,
    "eval_episodes": 4,
    "eval_freq": 0,
    "save_freq": 1024,
}
"""Settings of `--quick`, besides the learner's own."""
_PARTS = ("residual", "run", "learner", "task", "base")


def main(argv: Sequence[str]) -> int:
    """Parse, train, and tell what came of it."""
    if has_flag(argv, "--resume"):
        return _resume(argv)
    task_id, rest = require_target(argv, "train", "TASK", "Train a residual, or go on with a run by --resume RUN")
    cfg, flags = parse(task_id, rest)
    output = flags.output_dir or Path("runs") / f"{task_id}-{time.strftime('%Y%m%d-%H%M%S')}"
    runner = Runner(cfg, RunFolder(output))  # before the folder is made: a wrong setting leaves none behind
    with runner.folder.start(cfg.to_dict()):
        code = _train(runner, runner.folder)
    if flags.quick and code == 0:
        from residual_rl.cli import eval as evaluation

        return evaluation.main([str(output), "--n-episodes", "8", "--compare-base", "--compare-zero", "--plot"])
    return code


def parse(task_id: str, argv: Sequence[str]) -> tuple[TrainCfg, Any]:
    """The settings that the flags `argv` of `residual-rl train TASK` ask for, and the flags that are no settings."""
    setting = TASKS.get(task_id).variant
    variant = peek(argv, f"--{setting.replace('_', '-')}") if setting else None
    cfg = TrainCfg.default(task_id, peek(argv, "--base-policy", "--expert-type"), peek(argv, "--learner"), variant)
    if "--quick" in argv:
        cfg = replace_fields(cfg, {**QUICK, **LEARNERS.get(cfg.learner_id).quick_overrides})
    flags: Any = tyro.cli(
        _flags(cfg), args=list(argv), prog=f"residual-rl train {task_id}", description="Train a residual on top of a frozen base policy."
    )
    return dataclasses.replace(cfg, **{name: getattr(flags, name) for name in _PARTS if getattr(cfg, name) is not None}), flags


def _flags(cfg: TrainCfg) -> type:
    """A dataclass of all that `train` can be told for this task and base policy."""
    own: list[tuple[str, Any, Any]] = [
        (
            "base_policy",
            Annotated[str, tyro.conf.arg(aliases=["--expert-type"], help="Frozen policy to learn on top of: an id of `residual-rl list`.")],
            dataclasses.field(default=cfg.base_policy_id),
        ),
        (
            "learner_id",
            Annotated[str, tyro.conf.arg(name="learner", help="What learns the residual: an id of `residual-rl list`.")],
            dataclasses.field(default=cfg.learner_id),
        ),
        (
            "output_dir",
            Annotated[Path | None, tyro.conf.arg(help="Run folder to make. None: runs/TASK-DATE-TIME.")],
            dataclasses.field(default=None),
        ),
        (
            "quick",
            Annotated[bool, tyro.conf.arg(help="The whole pipeline, report included, in under 30 s: for a first look.")],
            dataclasses.field(default=False),
        ),
    ]
    return dataclasses.make_dataclass("Train", [*own, *parts_of(cfg, _PARTS)])


def _resume(argv: Sequence[str]) -> int:
    wants_help = bool(HELP & set(argv))
    if not wants_help:
        run_path = peek(argv, "--resume")
        if not run_path or run_path.startswith("-"):
            raise ConfigError("--resume needs a run folder: residual-rl train --resume RUN")
        if not argv[0].startswith("-"):
            raise ConfigError(f"a run goes on with its own task, so name no other: residual-rl train --resume {run_path}")
    args = ["--help"] if wants_help else list(argv)
    options = tyro.cli(_Resume, args=args, prog="residual-rl train", description="Go on with a run that was interrupted.")
    run = RunFolder(options.resume)
    with run.resume():
        cfg = read_config(run)
        if options.total_timesteps is not None:
            cfg = replace_fields(cfg, {"total_timesteps": options.total_timesteps})
        if options.trust_checkpoint:
            cfg = replace_fields(cfg, {"trust_checkpoint": True})
        runner = Runner(cfg, run, resume=True)
        write_json(run.config_file, cfg.to_dict())
        return _train(runner, run)


@dataclasses.dataclass
class _Resume:
    resume: Path
    """Run folder to go on with."""
    total_timesteps: int | None = None
    """Train up to this many env steps instead of what the run was started with; schedules stretch with it."""
    trust_checkpoint: bool = False
    """Let the base policy read a checkpoint that can run code of whoever made it."""


def read_config(run: RunFolder) -> TrainCfg:
    """The settings of a run folder."""
    try:
        return TrainCfg.from_dict(json.loads(run.config_file.read_text()))
    except FileNotFoundError:
        raise CheckpointError(f"{run.config_file} does not exist; {run.path} is not a run folder") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run.config_file} is not the configuration of a run: {error}") from error


def _train(runner: Runner, folder: RunFolder) -> int:
    console = Console()
    summary = runner.learn()
    best = summary["best_success_rate"]
    steps, took = f"{summary['steps']:,} steps", clock_time(summary["wall_time"])
    if not summary["finished"]:  # a signal in the last iteration stops nothing
        console.print(f"Stopped after {steps}, saved. Go on with: residual-rl train --resume {folder.path}", soft_wrap=True)
        return 128 + int(summary["signal"])
    console.print(f"Trained {steps} in {took}; best evaluation in training: {100 * best:.1f} % success.", soft_wrap=True)
    if summary["time_to_95"] is not None:
        console.print(f"95 % of the evaluation's episodes after {clock_time(summary['time_to_95'])} and {summary['step_to_95']:,} steps.")
    console.print(f"Run folder: {folder.path}", soft_wrap=True)
    console.print(f"Evaluate it: residual-rl eval {folder.path} --compare-base --plot --save-video", soft_wrap=True)
    return 0
