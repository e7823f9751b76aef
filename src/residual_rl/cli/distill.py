"""`residual-rl distill`: train one policy that imitates a run, without its base policy and residual."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from residual_rl.cli import demos
from residual_rl.cli.flags import (
    has_flag,
    parse_flags,
    parse_head,
    require_target,
    resume_folder,
    settings_as_flags,
)
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
from residual_rl.runs.locate import run_to_resume
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.console import Console
from residual_rl.utils.files import parse_json
from residual_rl.utils.text import shell_command


@dataclasses.dataclass(frozen=True)
class DistillFlags:
    """Flags of `distill` that are not settings."""

    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=["--out", "--output"])] = None
    """Output folder, which the base policy `il` takes as its checkpoint. None: RUN/distilled."""


@dataclasses.dataclass(frozen=True)
class ResumeFlags:
    """Flags of `distill --resume`."""

    resume: Path
    """Folder of the distillation to resume."""


@dataclasses.dataclass(frozen=True)
class _Head:
    """Flags that the defaults of the others depend on."""

    model: str = DistillCfg.model
    algo: Literal["bc", "flow"] = DistillCfg.algo


@dataclasses.dataclass(frozen=True)
class _ImitateHead:
    """The same for the flags `--imitate.*`."""

    preset: str | None = None
    device: str = "cpu"


def main(argv: Sequence[str]) -> int:
    """Parse, collect, train, evaluate."""
    if has_flag(argv, "--resume"):
        return _resume(argv)
    target, rest = require_target(
        argv, "distill", "RUN", "Distill a run into one policy, or resume with --resume FOLDER"
    )
    # the teacher, and the defaults that depend on it and on the algorithm
    run = Path(target)
    head = parse_head(_Head(), rest, f"distill {target}")
    imitate_head = parse_head(_ImitateHead(), rest, f"distill {target}", "imitate")
    teacher = find_teacher(run, head.model)
    imitation = default_imitation(head.algo, teacher.exported.cfg, imitate_head.device, imitate_head.preset)
    # the settings, checked before any episode is collected
    groups = {"own": DistillFlags(), "cfg": DistillCfg(), "imitate": imitation}
    about = "Train one policy that imitates a run, without its base policy and residual."
    parsed = parse_flags(groups, rest, f"distill {target}", about)
    cfg: DistillCfg = parsed["cfg"]
    imitation = parsed["imitate"]
    _check(cfg, imitation)
    if has_flag(rest, "--imitate.obs-keys"):
        _check_observed(imitation.obs_keys, teacher)
    out: Path = parsed["own"].output_dir or run / "distilled"
    RunFolder(run).refuse_links()
    if not RunFolder(out).is_empty:
        raise ConfigError(
            f"{out} is not empty; choose another --output-dir, or resume it: "
            f"{shell_command('distill', '--resume', out)}"
        )
    # the folder records the settings and the teacher's hash for --resume
    stored = {"run": str(run.resolve()), "sha256": teacher.digest, "distill": cfg, "imitate": imitation}
    with RunFolder(out).start(stored):
        return _distill(teacher, cfg, imitation, out)


def _check(cfg: DistillCfg, imitation: ImitateCfg) -> None:
    if imitation.algo != cfg.algo:
        raise ConfigError(f"choose the algorithm with --algo {imitation.algo}, not with --imitate.algo")
    if imitation.n_episodes is not None:
        raise ConfigError(
            f"choose how many episodes with --n-episodes {imitation.n_episodes}, not with "
            "--imitate.n-episodes"
        )


def _check_observed(names: Sequence[str], teacher: Teacher) -> None:
    """Raise `UnknownNameError` for observations that the collected episodes will not have."""
    env = make_residual_env(teacher.exported.cfg, 1)
    known: Any = env.vec_env.single_observation_space
    env.close()
    for name in names:
        if name not in known.spaces:
            raise UnknownNameError("observation", name, known)


def _resume(argv: Sequence[str]) -> int:
    args = argv if resume_folder(argv, "distill") is not None else ["--help"]
    about = "Resume an interrupted distillation."
    out = run_to_resume(parse_flags({"own": ResumeFlags}, args, "distill", about)["own"].resume, "distill")
    # the stored settings, read before anything is written into the folder
    file = RunFolder(out).config_file
    try:
        data = parse_json(file.read_text(encoding="utf-8"))
        cfg, imitation = from_plain(DistillCfg, data["distill"]), from_plain(ImitateCfg, data["imitate"])
        run, digest = Path(data["run"]), data["sha256"]
    except FileNotFoundError:
        raise CheckpointError(f"{out} contains no run to resume: {file.name} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is not the configuration of a distillation: {error}") from error
    teacher = find_teacher(run, cfg.model)
    check_same_teacher(digest, teacher)
    with RunFolder(out).resume():
        return _distill(teacher, cfg, imitation, out)


def _distill(teacher: Teacher, cfg: DistillCfg, imitation: ImitateCfg, out: Path) -> int:
    console = Console()
    task_id = teacher.exported.cfg.task_id

    # episodes are collected by the command `demos collect`, whose files can be resumed and inspected
    def collect(file: Path, n_episodes: int, first_seed: int) -> int:
        policy = ["--policy", str(teacher.run), "--model", cfg.model, "--out", str(file), "--overwrite"]
        noise = ["--noise", str(cfg.noise), "--noise-correlation", str(cfg.noise_correlation)]
        episodes = [
            "--n-episodes",
            str(n_episodes),
            "--first-seed",
            str(first_seed),
            *(["--only-success"] if cfg.only_success else []),
        ]
        return demos.main(["collect", task_id, *policy, *noise, *episodes])

    # collect, train, evaluate
    code = gather(out, cfg, task_id, collect)
    if code:
        return _stopped(console, out, code)
    summary = imitate(out, imitation)
    if not summary["finished"]:
        return _stopped(console, out, 128 + int(summary["signal"]))
    # compare the student with its teacher and the base policy
    torch.set_num_threads(teacher.exported.cfg.run.torch_threads)
    evaluation = evaluate_beside(out, cfg, teacher)
    console.print(format_table(evaluation))
    report = write_report(out, evaluation, plot=True)
    console.say(f"Policy: {out}", f"Report: {report}")
    settings = settings_as_flags(task_id, teacher.exported.cfg.to_dict()["task"])
    words = [*shlex.split(settings), "--base-policy", summary["base_policy"], "--il-checkpoint", out]
    console.say(f"Evaluate it: {shell_command('eval', task_id, *words)}")
    return 0


def _stopped(console: Console, out: Path, code: int) -> int:
    console.say(f"Stopped. Resume with: {shell_command('distill', '--resume', out)}")
    return code
