"""`residual-rl eval`: evaluate a run against its base policy and zero actions, or a base policy alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from residual_rl.base_policies.sb3 import SB3Residual
from residual_rl.cli.flags import parse_flags, parse_head, require_target
from residual_rl.cli.video import can_record, try_video
from residual_rl.config import ResidualScale, TrainCfg, replace_fields
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.evaluation.compare import run_episodes, summarize
from residual_rl.evaluation.deployment import deployment_text
from residual_rl.evaluation.eval_file import check_replaceable
from residual_rl.evaluation.evaluate import Episodes, no_residual
from residual_rl.evaluation.report import format_table, write_report
from residual_rl.exported_policy import ExportedPolicy, ResidualModel, find_policy
from residual_rl.factory import make_residual_env
from residual_rl.registry import TASKS
from residual_rl.runs.run_folder import RunFolder
from residual_rl.runs.wandb_artifacts import check_tracked, log_evaluation
from residual_rl.utils.console import Console
from residual_rl.utils.files import make_folder, write_json
from residual_rl.utils.seeding import EVAL_SEED
from residual_rl.utils.text import shell_command
from residual_rl.utils.trusted import read_sb3_policy
from residual_rl.utils.validation import CheckedCfg, EpisodeSeed, NumEnvs, NumThreads, PositiveInt
from residual_rl.visualization.recording import Recording, record, write_comparison


@dataclasses.dataclass(frozen=True)
class EvalFlags(CheckedCfg):
    """Flags of `eval` that are not settings."""

    n_episodes: Annotated[PositiveInt, tyro.conf.arg(aliases=["--eval-episodes"])] = 200
    """Episodes of each policy; the same for all."""
    first_seed: EpisodeSeed = EVAL_SEED
    """Seed of the first episode; the others follow. Training and its evaluations use other seeds."""
    eval_envs: NumEnvs = 100
    """Envs stepped together; the results do not depend on it."""
    num_threads: NumThreads | None = None
    """Simulator threads; 0 means OMP_NUM_THREADS, or else one per CPU core. The results do not depend on
    it. None: as in training."""
    model: str | None = None
    """best, final, interrupted, or the path of an exported policy. None: best, or the model given in place of
    a run."""
    residual_scale: Annotated[ResidualScale | None, tyro.conf.arg(aliases=["--alpha"])] = None
    """Bound of the residual. None: that of the exported model."""
    compare_base: bool = False
    """Evaluate the base policy alone on the same episodes."""
    compare_zero: bool = False
    """Evaluate zero actions on the same episodes."""
    plot: bool = False
    """Save the plots as PNG files too, in addition to the report."""
    save_video: bool = False
    """Write video.mp4: the base policy and the residual side by side on the same episodes."""
    video_episodes: PositiveInt = 4
    """Number of episodes in the video, from the first of the evaluation on."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["--out"])] = None
    """JSON file for the results. Those of a run are written to RUN/eval.json too, unless that file holds a
    larger evaluation."""
    wandb_artifacts: bool = False
    """Log the results to the run's W&B run, as an artifact with the report and the video."""
    overwrite: bool = False
    """Replace a larger evaluation in RUN/eval.json, its report, or the file of --output."""

    @property
    def num_policies(self) -> int:
        """Number of policies that are evaluated."""
        return 1 + self.compare_base + self.compare_zero


@dataclasses.dataclass(frozen=True)
class BaseEvalFlags(EvalFlags):
    """Flags of `eval TASK`, for a base policy alone."""

    base_policy: Annotated[str, tyro.conf.arg(aliases=["--expert-type"])] = ""
    """The policy to evaluate: an id of `residual-rl list`."""
    residual_policy: Path | None = None
    """Stable-Baselines3 model (.zip) to evaluate on top of it and compare with it, trained on
    gymnasium.make(ID, base_policy=…, residual_scale=…); give that scale as --residual-scale. Needs
    --trust-checkpoint."""

    @property
    def num_policies(self) -> int:
        """Number of policies that are evaluated."""
        return 1 + (self.residual_policy is not None) + self.compare_zero


@dataclasses.dataclass(frozen=True)
class TrustFlags:
    """The flag that allows reading a residual policy, where the base policy has none of its own."""

    trust_checkpoint: bool = False
    """Allow reading the model of --residual-policy; it can run any code of its author."""


def main(argv: Sequence[str]) -> int:
    """Parse, evaluate, print a table."""
    target, rest = require_target(argv, "eval", "RUN|TASK", "Evaluate a run, or a base policy alone")
    if Path(target).exists():
        return _evaluate_run(Path(target), rest)
    try:
        TASKS.get(target)
    except UnknownNameError as error:
        raise ConfigError(f"{target} is neither a run folder nor a task: {error}") from None
    return _evaluate_base(target, rest)


def _parse(argv: Sequence[str], target: str, cfg: TrainCfg, own: EvalFlags) -> tuple[EvalFlags, TrainCfg]:
    """The flags, and `cfg` with the settings that they change."""
    groups = {"own": own, "task": cfg.task, "base": cfg.base, "safety": cfg.safety}
    if isinstance(own, BaseEvalFlags) and not hasattr(cfg.base, "trust_checkpoint"):
        groups["trust"] = TrustFlags()
    parsed = parse_flags(groups, argv, f"eval {target}", "Evaluate on fixed episodes, each once.")
    flags: EvalFlags = parsed.pop("own")
    parsed.pop("trust", None)
    # before the evaluation: a wrong path, or one with a larger evaluation, fails early
    if flags.output is not None:
        make_folder(flags.output.parent)
        if not flags.overwrite:
            check_replaceable(flags.output, flags.n_episodes, flags.num_policies)
    given = {"num_threads": flags.num_threads, "residual_scale": flags.residual_scale}
    changes = {name: value for name, value in given.items() if value is not None}
    return flags, replace_fields(dataclasses.replace(cfg, **parsed), changes)


def _evaluate_run(path: Path, argv: Sequence[str]) -> int:
    # the model, and the run that it belongs to
    found = find_policy(path, parse_head(EvalFlags(), argv, f"eval {path}").model)
    if found.run is None:
        raise ConfigError(
            f"{path} is a model outside of a run folder; give the run to store the results in: "
            f"{shell_command('eval', 'RUN', '--model', path)}"
        )
    run, trained = RunFolder(found.run), found.exported
    run.refuse_links()  # before the evaluation, whose results are written there
    # the settings: those of training, with the changes of the command line
    flags, cfg = _parse(argv, str(path), trained.cfg, EvalFlags())
    scale = trained.residual_scale if flags.residual_scale is None else flags.residual_scale
    exported = dataclasses.replace(trained, residual_scale=scale)
    stored = _is_stored(run, flags)
    project = check_tracked(run, trained.cfg.run.wandb_project) if flags.wandb_artifacts else None
    torch.set_num_threads(cfg.run.torch_threads)
    # without what a video needs, there are all figures and no video
    console = Console()
    if flags.save_video and not _can_record(cfg, console):
        flags = dataclasses.replace(flags, save_video=False)
    # evaluate the policies, all on the same episodes
    results = {"residual": _run_episodes(cfg, flags, exported)}
    if flags.compare_base:
        results["base"] = _run_episodes(cfg, flags)
    if flags.compare_zero:
        results["zero"] = _run_episodes(cfg, flags, base_policy_id="zero")
    # the results, with the settings that differ from training
    settings = _settings(cfg, flags) | {
        "model": found.model,
        "model_step": exported.step,
        "residual_scale": scale,
        "changed_from_training": _changes(trained.cfg, cfg)
        | (
            {"residual.residual_scale": [trained.residual_scale, scale]}
            if scale != trained.residual_scale
            else {}
        ),
    }
    evaluation = summarize(results, _seeds(flags), cfg.task_id, settings, _units(cfg))
    if stored:
        write_json(run.eval_file, evaluation)
    if flags.output is not None:
        write_json(flags.output, evaluation)
    # the table first, then the pictures, whose failure loses no figures
    console.print(format_table(evaluation))
    if flags.save_video:
        try_video(lambda: _write_video(run.path / "video.mp4", cfg, flags, exported), console)
    deployed = deployment_text(run.summary_file) if found.file.parent == run.best_model else None
    # a run that keeps its larger evaluation keeps the report of that one
    report = write_report(run.path, evaluation if stored else None, plot=flags.plot)
    if project is not None:
        log_evaluation(run, project)
    if not stored:
        console.say(
            f"{run.eval_file} and the report keep the larger evaluation; this one is in {flags.output}"
        )
    if deployed is not None:
        console.say(deployed)
    console.say(f"Run folder: {run.path}", f"Report: {report}")
    return 0


def _is_stored(run: RunFolder, flags: EvalFlags) -> bool:
    """Whether the results are written to `RUN/eval.json`: with --output, a larger evaluation is kept there.
    Raises `ConfigError` if they would be written nowhere."""
    try:
        if not flags.overwrite:
            check_replaceable(run.eval_file, flags.n_episodes, flags.num_policies)
    except ConfigError:
        if flags.output is None:
            raise
        return False
    return True


def _evaluate_base(task_id: str, argv: Sequence[str]) -> int:
    head = parse_head(BaseEvalFlags(), argv, f"eval {task_id}")
    cfg = TrainCfg.default(task_id, head.base_policy or None)
    flags, cfg = _parse(argv, task_id, cfg, BaseEvalFlags(base_policy=cfg.base_policy_id))
    # flags that make sense for a run only, or for a residual
    for name in ("model", "residual_scale", "compare_base", "plot", "save_video", "wandb_artifacts"):
        value = getattr(flags, name)
        if head.residual_policy is not None and name in ("residual_scale", "compare_base"):
            continue
        if value is not None and value is not False:  # 0 is a valid scale
            raise ConfigError(
                f"--{name.replace('_', '-')} needs a run folder: train first, then `residual-rl eval RUN`"
            )
    torch.set_num_threads(cfg.run.torch_threads)
    # evaluate the residual if there is one, the base policy, and zero actions on request
    results, settings = {}, _settings(cfg, flags)
    residual = _read_residual(argv, task_id, head.residual_policy, cfg.residual.residual_scale)
    if residual is not None:
        results["residual"] = _run_episodes(cfg, flags, residual)
        settings |= {
            "residual_policy": str(head.residual_policy),
            "residual_scale": residual.residual_scale,
        }
    results["base"] = _run_episodes(cfg, flags)
    if flags.compare_zero:
        results["zero"] = _run_episodes(cfg, flags, base_policy_id="zero")
    evaluation = summarize(results, _seeds(flags), task_id, settings, _units(cfg))
    if flags.output is not None:
        write_json(flags.output, evaluation)
    Console().print(format_table(evaluation))
    return 0


def _read_residual(argv: Sequence[str], task_id: str, path: Path | None, scale: float) -> SB3Residual | None:
    """The model of --residual-policy, with the user's trust; None without the flag."""
    if path is None:
        return None
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; --residual-policy needs a Stable-Baselines3 model (.zip)")
    trusted = parse_head(TrustFlags(), argv, f"eval {task_id}").trust_checkpoint
    return SB3Residual(read_sb3_policy(path, trusted), scale, str(path))


def _seeds(flags: EvalFlags) -> range:
    return range(flags.first_seed, flags.first_seed + flags.n_episodes)


def _run_episodes(
    cfg: TrainCfg, flags: EvalFlags, exported: ResidualModel | None = None, base_policy_id: str | None = None
) -> Episodes:
    """Evaluate base + residual, or without `exported` the base alone."""
    name = "residual" if exported else base_policy_id or "base"
    return run_episodes(cfg, _seeds(flags), flags.eval_envs, name, exported, base_policy_id)


def _can_record(cfg: TrainCfg, console: Console) -> bool:
    """Whether a video of the task can be written here."""
    env = make_residual_env(cfg, 1)
    try:
        return can_record(env.vec_env, console)
    finally:
        env.close()


def _write_video(path: Path, cfg: TrainCfg, flags: EvalFlags, exported: ExportedPolicy) -> None:
    seeds = _seeds(flags)[: flags.video_episodes]
    recordings: dict[str, list[Recording]] = {}
    for name, policy in (("base", None), ("residual", exported)):
        env = make_residual_env(cfg, len(seeds))
        env.residual_scale = exported.residual_scale
        recordings[name] = record(
            env,
            policy.actor(env.observation_space, env.action_dim, env.device) if policy else no_residual(env),
            seeds,
        )
    write_comparison(path, env.vec_env, recordings)
    env.close()


def _settings(cfg: TrainCfg, flags: EvalFlags) -> dict[str, Any]:
    return {
        "n_episodes": flags.n_episodes,
        "first_seed": flags.first_seed,
        "base_policy": cfg.base_policy_id,
        "task": dataclasses.asdict(cfg.task),
        "base": dataclasses.asdict(cfg.base) if cfg.base is not None else None,
        **({"safety": dataclasses.asdict(cfg.safety)} if cfg.safety.safety else {}),
    }


def _changes(trained: TrainCfg, evaluated: TrainCfg) -> dict[str, Any]:
    """Settings that differ between training and this evaluation: `{name: [trained, evaluated]}`."""
    changes = {}
    for part in ("task", "base", "safety"):
        before, after = getattr(trained, part), getattr(evaluated, part)
        if before is not None:
            for field in dataclasses.fields(before):
                pair = [getattr(before, field.name), getattr(after, field.name)]
                if pair[0] != pair[1]:
                    changes[f"{part}.{field.name}"] = pair
    return changes


def _units(cfg: TrainCfg) -> dict[str, str]:
    return dict(TASKS.get(cfg.task_id).metric_units)
