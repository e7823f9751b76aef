"""`residual-rl train`: train a residual into a run folder, or resume a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from residual_rl.cli.auto_scale import AUTO, ResidualFlags, is_auto_by_default, measure_first
from residual_rl.cli.flags import has_flag, is_given, parse_flags, parse_head, require_target, resume_folder
from residual_rl.config import PARTS, TrainCfg, replace_fields
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.registry import BASE_POLICIES, LEARNERS, TASKS
from residual_rl.utils.files import parse_json, write_json
from residual_rl.utils.text import shell_command
from residual_rl.utils.validation import CheckedCfg, PositiveInt

if TYPE_CHECKING:
    from residual_rl.runner import Runner
    from residual_rl.runs.run_folder import RunFolder

QUICK = {
    "num_envs": 8,
    "total_timesteps": 2048,
    "eval_episodes": 4,
    "confirm_episodes": 8,
    "eval_freq": 0,
    "save_freq": 1024,
}
"""Settings of `--quick`, besides the learner's own."""


@dataclasses.dataclass(frozen=True)
class TrainFlags:
    """Flags of `train` that are not settings."""

    base_policy: Annotated[str, tyro.conf.arg(aliases=["--expert-type"])] = ""
    """Frozen base policy of the residual: an id of `residual-rl list`."""
    learner: str = ""
    """Algorithm that trains the residual: an id of `residual-rl list`."""
    preset: str | None = None
    """Published settings for the task to start from: a name of `residual-rl list`. Other flags change single
    settings."""
    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=["--out", "--output"])] = None
    """Run folder to create. None: runs/TASK-DATE-TIME."""
    quick: bool = False
    """Run the whole pipeline, report included, in under a minute, as a smoke test."""
    force: bool = False
    """Train even if measuring the base policy (see --residual-scale) shows that there is nothing to learn
    or to gain."""


class Parsed(NamedTuple):
    """The arguments of `train TASK`."""

    cfg: TrainCfg
    """The settings; without the choices that `auto_scale` asks for."""
    flags: TrainFlags
    auto_scale: bool
    """Whether to measure the base policy first, and to choose settings accordingly."""


@dataclasses.dataclass(frozen=True)
class ResumeFlags(CheckedCfg):
    """Flags of `train --resume`."""

    resume: Path
    """Run folder to resume."""
    total_timesteps: Annotated[PositiveInt | None, tyro.conf.arg(aliases=["--total-steps"])] = None
    """Total number of env steps, in place of the stored one; schedules are stretched accordingly."""
    trust_checkpoint: bool = False
    """Let the base policy read a checkpoint that can run any code of its author."""


def main(argv: Sequence[str]) -> int:
    """Parse, train, and print the outcome."""
    if has_flag(argv, "--resume"):
        return _resume(argv)
    task_id, rest = require_target(
        argv, "train", "TASK", "Train a residual, or resume a run with --resume RUN"
    )
    cfg, flags, auto_scale = parse(task_id, rest)
    _print_changed_defaults(cfg, flags, rest)
    from residual_rl.evaluation.probe_report import save_probe
    from residual_rl.runner import Runner
    from residual_rl.runs.run_folder import RunFolder, output_folder

    with output_folder(flags.output_dir, "runs", task_id) as output:
        measured = None
        if auto_scale:
            given = _given(cfg, flags, rest)
            cfg, measured = measure_first(cfg, given, output, flags.quick, flags.force)
        runner = Runner(cfg, RunFolder(output))  # before anything is written: wrong settings leave no folder
        with runner.folder.start(runner.cfg.to_dict()):
            runner.cfg.write_signature(output)
            if measured is not None:
                save_probe(output, *measured)
            code = _train(runner, runner.folder)
    # --quick also evaluates, with a report, so that it covers the whole pipeline
    if flags.quick and code == 0:
        from residual_rl.cli import eval as evaluation

        return evaluation.main([str(output), "--n-episodes", "8", "--compare-base", "--compare-zero"])
    return code


def parse(task_id: str, argv: Sequence[str]) -> Parsed:
    """The settings and the other flags from the arguments of `residual-rl train TASK`."""
    cfg = _defaults(task_id, argv)
    own = TrainFlags(base_policy=cfg.base_policy_id, learner=cfg.learner_id)
    preset = _preset(cfg, parse_head(TrainFlags(), argv, f"train {task_id}"))
    groups = {"own": own, **{name: getattr(cfg, name) for name in PARTS}}
    groups["residual"] = ResidualFlags.of(cfg.residual, is_auto_by_default(cfg, preset))
    about = "Train a residual on top of a frozen base policy."
    parsed = parse_flags(groups, argv, f"train {task_id}", about)
    flags: TrainFlags = parsed.pop("own")
    residual: ResidualFlags = parsed["residual"]
    parsed["residual"] = residual.resolve(cfg.residual.residual_scale)
    return Parsed(dataclasses.replace(cfg, **parsed), flags, residual.residual_scale == AUTO)


def _preset(cfg: TrainCfg, flags: TrainFlags) -> Mapping[str, Any]:
    """The settings of the preset; empty without one."""
    return TASKS.get(cfg.task_id).preset(flags.preset).settings if flags.preset else {}


def _given(cfg: TrainCfg, flags: TrainFlags, argv: Sequence[str]) -> set[str]:
    """The settings that the user chose: by a flag, a preset, or --quick."""
    parts = [type(getattr(cfg, name)) for name in PARTS if getattr(cfg, name) is not None]
    fields = [(part, field.name) for part in parts for field in dataclasses.fields(part)]
    quick = {**QUICK, **LEARNERS.get(cfg.learner_id).quick_overrides} if flags.quick else {}
    typed = {name for part, name in fields if is_given(argv, part, name)}
    return (typed - {"residual_scale"}) | set(_preset(cfg, flags)) | set(quick)


def _defaults(task_id: str, argv: Sequence[str]) -> TrainCfg:
    """The defaults for the base policy, the learner and the variant of the task that the arguments name."""
    spec = TASKS.get(task_id)
    head = parse_head(TrainFlags(), argv, f"train {task_id}")
    names = (task_id, head.base_policy or None, head.learner or None)
    cfg = TrainCfg.default(*names, preset=head.preset)
    # the variant is one of the task's own settings, such as ManiSkill's env_id
    if spec.variant is not None:
        variant = getattr(parse_head(cfg.task, argv, f"train {task_id}"), spec.variant)
        cfg = TrainCfg.default(*names, variant, head.preset)
    if head.quick:
        cfg = replace_fields(cfg, {**QUICK, **LEARNERS.get(cfg.learner_id).quick_overrides})
    return cfg


def _print_changed_defaults(cfg: TrainCfg, flags: TrainFlags, argv: Sequence[str]) -> None:
    """Print the settings of which the base policy changes the default, unless a flag or the preset sets
    them."""
    spec = BASE_POLICIES.get(cfg.base_policy_id)
    preset = _preset(cfg, flags)
    for name, value in spec.train_overrides.items():
        part = next(part for part in (cfg.residual, cfg.run) if hasattr(part, name))
        if name in preset or is_given(argv, type(part), name):
            continue
        flag = name.replace("_", "-")
        print(f"Base policy {spec.id} ({spec.summary}): --{flag} is {value:g} by default.")


def _resume(argv: Sequence[str]) -> int:
    folder = resume_folder(argv, "train")
    if folder is not None and not argv[0].startswith("-"):
        raise ConfigError(f"a run is resumed with its own task: {shell_command('train', '--resume', folder)}")
    args = argv if folder is not None else ["--help"]
    options: ResumeFlags = parse_flags({"own": ResumeFlags}, args, "train", "Resume an interrupted run.")[
        "own"
    ]
    from residual_rl.runner import Runner
    from residual_rl.runs.locate import run_to_resume
    from residual_rl.runs.run_folder import RunFolder

    # the stored settings, of which these two may change; read before anything is written into the folder
    run = RunFolder(run_to_resume(options.resume, "train"))
    cfg = read_config(run)
    with run.resume():
        if options.total_timesteps is not None:
            cfg = replace_fields(cfg, {"total_timesteps": options.total_timesteps})
        if options.trust_checkpoint:
            cfg = replace_fields(cfg, {"trust_checkpoint": True})
        runner = Runner(cfg, run, resume=True)
        write_json(run.config_file, runner.cfg.to_dict())
        runner.cfg.write_signature(run.path)
        return _train(runner, run)


def read_config(run: RunFolder) -> TrainCfg:
    """The settings of a run folder. Raises `CheckpointError` naming the file."""
    try:
        return TrainCfg.from_dict(parse_json(run.config_file.read_text("utf-8")), run.config_file)
    except FileNotFoundError:
        raise CheckpointError(
            f"{run.path} contains no run to resume: {run.config_file.name} is missing"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run.config_file} is not the configuration of a run: {error}") from error


def _train(runner: Runner, folder: RunFolder) -> int:
    from residual_rl.evaluation.deployment import Deployment
    from residual_rl.runs.progress_bar import clock_time
    from residual_rl.runs.wandb_artifacts import log_models
    from residual_rl.utils.console import Console

    console = Console()
    start = runner.progress.step
    summary = runner.learn()
    best = summary["best_success_rate"]
    steps, took = f"{summary['steps']:,} steps", clock_time(summary["wall_time"])
    if not summary["finished"]:  # a signal during the last iteration has no effect
        resume = shell_command("train", "--resume", folder.path)
        console.say(f"Stopped after {steps}, saved. Resume with: {resume}")
        return 128 + int(summary["signal"])
    done = f"Trained {steps} in {took}"
    if start == summary["steps"]:
        done = f"Nothing to train: the run has all of its {steps} (--total-timesteps N trains up to N)"
    console.say(f"{done}; best evaluation during training: {100 * best:.1f} % success.")
    if summary["time_to_95"] is not None:
        console.say(
            f"95 % success in an evaluation after {clock_time(summary['time_to_95'])} and "
            f"{summary['step_to_95']:,} steps."
        )
    deployment = Deployment.from_summary(summary)
    if deployment is not None:
        console.say(deployment.text)
    if runner.cfg.run.wandb_artifacts and runner.cfg.run.wandb_project is not None:
        log_models(folder, runner.cfg.run.wandb_project)
    console.say(f"Run folder: {folder.path}")
    evaluation = shell_command("eval", folder.path, "--compare-base", "--plot", "--save-video")
    console.say(f"Evaluate it: {evaluation}")
    return 0
