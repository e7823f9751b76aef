"""`residual-rl sweep`: train each point of a grid of settings with several seeds, and rank the points."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from residual_rl.cli import train
from residual_rl.cli.flags import has_flag, parse_flags, parse_known, require_target, resume_folder
from residual_rl.errors import ConfigError
from residual_rl.runs.locate import run_to_resume
from residual_rl.runs.run_folder import RunFolder, output_folder
from residual_rl.runs.wandb_tracker import check_wandb
from residual_rl.sweeps.executor import require_executor, run_trials
from residual_rl.sweeps.grid import (
    SweepCfg,
    Trial,
    check_train_flags,
    make_trials,
    parse_grid,
    read_sweep,
    state_of,
)
from residual_rl.sweeps.live_table import SweepTable
from residual_rl.sweeps.report import ranking_table, write_report
from residual_rl.utils.console import Console
from residual_rl.utils.files import plain
from residual_rl.utils.seeding import EVAL_SEED
from residual_rl.utils.signals import stop_signals
from residual_rl.utils.signature import write_signature
from residual_rl.utils.text import shell_command
from residual_rl.utils.validation import (
    CheckedCfg,
    EpisodeSeed,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)


@dataclasses.dataclass(frozen=True)
class SweepFlags(CheckedCfg):
    """Flags of `sweep`. Those of `residual-rl train TASK` are accepted too, for all trials."""

    grid: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting and its values, e.g. `--grid residual_scale=0.1,0.3,0.6`; repeat it for a grid. All settings
    of `train` are allowed, except for the learner, the base policy and the seed."""
    seeds: PositiveInt = 3
    """Training seeds for each point of the grid: 1, 2, …"""
    first_seed: NonNegativeInt = 1
    """First training seed."""
    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=["--out", "--output"])] = None
    """Folder of the sweep, with a run folder for each trial. None: sweeps/TASK-DATE-TIME."""
    n_episodes: PositiveInt = 200
    """Number of evaluation episodes of each trained policy; all use the same ones."""
    first_eval_seed: EpisodeSeed = EVAL_SEED
    """Seed of the first evaluation episode; training and its evaluations use other seeds."""
    cpus_per_trial: PositiveInt = 1
    """CPU cores of a trial; as many trials run in parallel as there are cores for."""
    gpus_per_trial: NonNegativeFloat = 0.0
    """GPUs of a trial; with 0.25, four trials share one. Needs Ray."""
    ray_address: str | None = None
    """Run the trials with Ray: the address of a running cluster whose machines all see the sweep's folder,
    `auto` for the one that this machine belongs to, or `local` to start Ray on this machine. None: as
    subprocesses of this machine."""


@dataclasses.dataclass(frozen=True)
class ResumeFlags:
    """Flags of `sweep --resume`."""

    resume: Path
    """Folder of the sweep to resume."""
    retry_failed: bool = False
    """Retry failed trials, from their last checkpoints."""
    ray_address: str | None = None
    """Run the trials with Ray: the address of a running cluster whose machines all see the sweep's folder,
    `auto` for the one that this machine belongs to, or `local` to start Ray on this machine. None: as
    subprocesses of this machine."""


def main(argv: Sequence[str]) -> int:
    """Parse, run the remaining trials, rank."""
    if has_flag(argv, "--resume"):
        return _resume(argv)
    task_id, rest = require_target(
        argv, "sweep", "TASK", "Train a grid of settings with several seeds, or resume with --resume SWEEP"
    )
    flags, shared = _parse(task_id, rest)
    # the grid, checked against the settings of the learner and the base policy before anything runs
    check_train_flags(shared, {})
    cfg = train.parse(task_id, shared).cfg
    grid = parse_grid(flags.grid, cfg)
    check_train_flags(shared, grid, cfg)
    # the trials: each point of the grid with each seed
    sweep = SweepCfg(
        task_id,
        tuple(shared),
        grid,
        tuple(range(flags.first_seed, flags.first_seed + flags.seeds)),
        flags.n_episodes,
        flags.first_eval_seed,
        flags.cpus_per_trial,
        flags.gpus_per_trial,
        cwd=os.getcwd(),
    )
    with output_folder(flags.output_dir, "sweeps", task_id) as output:
        folder = output.resolve()
        trials = make_trials(sweep, cfg, folder)
        require_executor(flags.ray_address, sweep.gpus_per_trial)
        if cfg.run.wandb_project is not None:
            check_wandb(cfg.run.wandb_project)
        if not RunFolder(folder).is_empty:
            raise ConfigError(
                f"{output} is not empty; choose another --output-dir, or resume its sweep: "
                f"{shell_command('sweep', '--resume', output)}"
            )
        # the folder records the sweep, so that --resume finds it
        with RunFolder(folder).start(sweep):
            write_signature(folder, plain(sweep))
            return _run(sweep, trials, folder, flags.ray_address)


def _parse(task_id: str, argv: Sequence[str]) -> tuple[SweepFlags, list[str]]:
    """The flags of the sweep, and those of all its trials."""
    about = (
        f"Train a grid of settings with several seeds. Flags of `residual-rl train {task_id} --help` apply "
        "to all trials."
    )
    return parse_known(SweepFlags(), argv, f"sweep {task_id}", about)


def _resume(argv: Sequence[str]) -> int:
    args = argv if resume_folder(argv, "sweep") is not None else ["--help"]
    flags: ResumeFlags = parse_flags({"own": ResumeFlags}, args, "sweep", "Resume an interrupted sweep.")[
        "own"
    ]
    folder = run_to_resume(flags.resume.resolve(), "sweep")
    sweep = read_sweep(folder)
    require_executor(flags.ray_address, sweep.gpus_per_trial)
    with RunFolder(folder).resume():
        # the same trials as before; finished ones are skipped
        cfg = train.parse(sweep.task_id, sweep.train).cfg
        trials = make_trials(sweep, cfg, folder)
        if flags.retry_failed:
            for trial in trials:
                trial.failure_file.unlink(missing_ok=True)
        return _run(sweep, trials, folder, flags.ray_address)


def _run(sweep: SweepCfg, trials: Sequence[Trial], folder: Path, address: str | None) -> int:
    console = Console()
    # run the trials that are neither finished nor failed
    left = [trial for trial in trials if state_of(trial) not in ("finished", "failed")]
    with stop_signals() as stop, SweepTable(trials, console) as table:
        if left:
            run_trials(
                left,
                sweep.cwd,
                sweep.cpus_per_trial,
                sweep.gpus_per_trial,
                address,
                lambda: stop.signal is not None,
                table.update,
            )
        for trial in trials:
            table.settle(trial)
    # rank the finished trials, after an interruption too
    report = write_report(sweep, trials, folder)
    return _print_summary(console, report, trials, folder, stop.signal)


def _print_summary(
    console: Console, report: dict[str, Any], trials: Sequence[Trial], folder: Path, signal: int | None
) -> int:
    if report["ranking"]:
        console.print(ranking_table(report))
    failed = [trial for trial in report["trials"] if trial["state"] == "failed"]
    for trial in failed:
        console.say(f"Failed: {trial['name']}: {trial['reason']}")
    # a summary, with the command that continues the sweep
    finished = sum(trial["state"] == "finished" for trial in report["trials"])
    console.say(
        f"{finished} of {len(trials)} trials finished. Report: {folder / 'report.md'}",
    )
    if failed:
        retry = shell_command("sweep", "--resume", folder, "--retry-failed")
        console.say(f"Retry the failed trials with: {retry}")
    if finished + len(failed) < len(trials):
        console.say(f"Resume with: {shell_command('sweep', '--resume', folder)}")
    if signal is not None and finished + len(failed) < len(trials):
        return 128 + signal
    return 0 if finished == len(trials) else 1
