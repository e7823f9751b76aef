"""`residual-rl distill`: make one policy of a run's base and residual, that needs neither."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console

from residual_rl.cli import demos
from residual_rl.cli.flags import HELP, has_flag, peek, require_target
from residual_rl.config import from_plain
from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.evaluation.formatting import format_table
from residual_rl.evaluation.report import write_report
from residual_rl.factory import make_residual_env
from residual_rl.imitation.config import ImitateCfg
from residual_rl.imitation.distill import (
    DistillCfg,
    Teacher,
    check_same_teacher,
    default_imitation,
    evaluate_beside,
    find_teacher,
    gather,
    imitate,
)
from residual_rl.runs.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class _Out:
    """Where to."""

    out: Path | None = None
    """Folder to make; the base policy `il` takes it as its checkpoint. None: RUN/distilled."""


@dataclasses.dataclass(frozen=True)
class _Resume:
    """How to go on."""

    resume: Path = Path()
    """Folder of the distilling to go on with."""


def main(argv: Sequence[str]) -> int:
    """Parse, collect, train, evaluate."""
    if has_flag(argv, "--resume"):
        return _resume(argv)
    target, rest = require_target(argv, "distill", "RUN", "Make one policy of a run, or go on by --resume FOLDER")
    run = Path(target)
    teacher = find_teacher(run, peek(rest, "--model") or "best")
    preset, device = peek(rest, "--imitate.preset"), peek(rest, "--imitate.device") or "cpu"
    imitation = default_imitation(peek(rest, "--algo") or DistillCfg.algo, teacher.exported.cfg, device, preset)
    fields = [
        ("own", Annotated[_Out, tyro.conf.arg(name="")], dataclasses.field(default=_Out())),
        ("cfg", Annotated[DistillCfg, tyro.conf.arg(name="")], dataclasses.field(default=DistillCfg())),
        ("imitate", ImitateCfg, dataclasses.field(default=imitation)),
    ]
    about = "Make one policy of a run, that needs neither its base policy nor its residual."
    flags: Any = tyro.cli(dataclasses.make_dataclass("Distill", fields), args=rest, prog=f"residual-rl distill {target}", description=about)
    _check(flags.cfg, flags.imitate)
    if has_flag(rest, "--imitate.obs-keys"):
        _check_observed(flags.imitate.obs_keys, teacher)
    out: Path = flags.own.out or run / "distilled"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there and not empty; choose another --out, or go on with it: residual-rl distill --resume {out}")
    stored = {"run": str(run.resolve()), "sha256": teacher.digest, "distill": flags.cfg, "imitate": flags.imitate}
    with RunFolder(out).start(stored):
        return _distill(teacher, flags.cfg, flags.imitate, out)


def _check(cfg: DistillCfg, imitation: ImitateCfg) -> None:
    if imitation.algo != cfg.algo:
        raise ConfigError(f"choose the algorithm with --algo {imitation.algo}, not with --imitate.algo")
    if imitation.n_episodes is not None:
        raise ConfigError(f"choose how many episodes with --n-episodes {imitation.n_episodes}, not with --imitate.n-episodes")


def _check_observed(names: Sequence[str], teacher: Teacher) -> None:
    """Raise `UnknownNameError` for observations that the collected episodes will not have."""
    env = make_residual_env(teacher.exported.cfg, 1)
    known: Any = env.vec_env.single_observation_space
    env.close()
    for name in names:
        if name not in known.spaces:
            raise UnknownNameError("observation", name, known)


def _resume(argv: Sequence[str]) -> int:
    args = ["--help"] if HELP & set(argv) else list(argv)
    out = tyro.cli(_Resume, args=args, prog="residual-rl distill", description="Go on with distilling that was interrupted.").resume
    folder = RunFolder(out)
    with folder.resume():
        try:
            data = json.loads(folder.config_file.read_text(encoding="utf-8"))
            cfg, imitation = from_plain(DistillCfg, data["distill"]), from_plain(ImitateCfg, data["imitate"])
            run, digest = Path(data["run"]), data["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder.config_file} is not the configuration of distilling: {error}") from error
        teacher = find_teacher(run, cfg.model)
        check_same_teacher(digest, teacher)
        return _distill(teacher, cfg, imitation, out)


def _distill(teacher: Teacher, cfg: DistillCfg, imitation: ImitateCfg, out: Path) -> int:
    console = Console()
    task_id = teacher.exported.cfg.task_id

    def collect(file: Path, n_episodes: int, first_seed: int) -> int:
        what = ["--policy", str(teacher.run), "--model", cfg.model, "--out", str(file), "--overwrite"]
        how = ["--noise", str(cfg.noise), "--noise-correlation", str(cfg.noise_correlation)]
        which = ["--n-episodes", str(n_episodes), "--first-seed", str(first_seed), *(["--only-success"] if cfg.only_success else [])]
        return demos.main(["collect", task_id, *what, *how, *which])

    code = gather(out, cfg, task_id, collect)
    if code:
        return _stopped(console, out, code)
    summary = imitate(out, imitation)
    if not summary["finished"]:
        return _stopped(console, out, 128 + int(summary["signal"]))
    torch.set_num_threads(teacher.exported.cfg.run.torch_threads)
    evaluation = evaluate_beside(out, cfg, teacher)
    report = write_report(out, evaluation, plot=True)
    console.print(format_table(evaluation))
    console.print(f"Policy: {out}\nReport: {report}", soft_wrap=True)
    policy = f"--base-policy {summary['base_policy']} --il-checkpoint {out}"
    console.print(f"Evaluate it alone: residual-rl eval {task_id} {policy}", soft_wrap=True)
    return 0


def _stopped(console: Console, out: Path, code: int) -> int:
    console.print(f"Stopped. Go on with: residual-rl distill --resume {out}", soft_wrap=True)
    return code
