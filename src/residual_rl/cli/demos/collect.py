"""`residual-rl demos collect`: run a policy or a planner, and store the episodes."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from residual_rl.cli.flags import has_flag, parse_flags, parse_head, require_target
from residual_rl.cli.policies import ORACLE, resolve_policy
from residual_rl.config import TrainCfg, replace_fields, sign_task_settings
from residual_rl.demos.collect import (
    NUM_ENVS,
    CollectCfg,
    CollectionStats,
    collect,
    collect_planned,
    max_envs_in_memory,
)
from residual_rl.demos.episode import Planner
from residual_rl.demos.writer import DemoWriter, action_units, check_output, describe
from residual_rl.errors import ConfigError
from residual_rl.evaluation.evaluate import no_residual
from residual_rl.exported_policy import ExportedPolicy
from residual_rl.factory import make_residual_env, task_settings
from residual_rl.registry import TASKS, load
from residual_rl.residual_env import ResidualEnv
from residual_rl.runs.progress_bar import ProgressBar
from residual_rl.utils.console import Console
from residual_rl.utils.signals import stop_signals
from residual_rl.utils.threads import simulator_threads
from residual_rl.utils.validation import CheckedCfg, NumThreads, PositiveFloat


@dataclasses.dataclass(frozen=True)
class CollectFlags(CheckedCfg):
    """Flags of `demos collect` that are not settings."""

    policy: str = ORACLE
    """`oracle` (a policy that solves the task), a planner of the task (such as motion-planning), a base
    policy of `residual-rl list`, or a run folder or model (base + residual)."""
    model: str | None = None
    """Model of a run: best, final, interrupted, or the path of an exported policy. None: best."""
    output: Annotated[Path, tyro.conf.arg(aliases=["--out"])] = Path("demos.h5")
    """File to write; its description is written to a file of the same name with the suffix .json."""
    overwrite: bool = False
    """Replace an existing file."""
    num_threads: NumThreads | None = None
    """Simulator threads; 0 means OMP_NUM_THREADS, or else one per CPU core. The episodes do not depend on
    it. None: as in training."""
    time_limit: PositiveFloat = 120.0
    """Time limit of a planner for each episode [s]."""


def collect_episodes(argv: Sequence[str]) -> int:
    """Parse, collect, and print the outcome."""
    task_id, rest = require_target(argv, "demos collect", "TASK", "Collect demonstrations")
    # the other flags depend on the policy; planners run in worker processes
    head = parse_head(CollectFlags(), rest, f"demos collect {task_id}")
    if head.policy in TASKS.get(task_id).planners:
        return _collect_planned(task_id, rest, head.policy)
    # the settings: those of a run if --policy names one, otherwise the task's defaults
    exported, cfg = resolve_policy(task_id, head.policy, head.model, "demos collect")
    flags, collect_cfg, cfg = _parse_collect(task_id, rest, cfg)
    check_output(flags.output, flags.overwrite)
    torch.set_num_threads(cfg.run.torch_threads)
    # the env and the policy: base + residual, or the base policy alone
    env = _make_env(cfg, collect_cfg)
    if exported is not None:
        env.residual_scale = exported.residual_scale
    policy = (
        exported.actor(env.observation_space, env.action_dim, env.device) if exported else no_residual(env)
    )
    begin = time.perf_counter()
    with (
        stop_signals() as stop,
        DemoWriter(flags.output, _describe(env, cfg, exported, collect_cfg), flags.overwrite) as writer,
        ProgressBar(collect_cfg.n_episodes, unit="episodes", title="collect") as bar,
    ):
        collected = collect(
            env,
            policy,
            collect_cfg,
            writer,
            with_residual=exported is not None,
            stopped=lambda: stop.signal is not None,
            on_progress=bar.update,
        )
    env.close()
    minutes = (time.perf_counter() - begin) / 60
    return _report_collected(flags.output, writer.published, collected, collect_cfg, minutes, stop.signal)


def _collect_planned(task_id: str, argv: Sequence[str], name: str) -> int:
    """Collect from the planner `name` of the task."""
    spec = TASKS.get(task_id)
    flags, collect_cfg, cfg = _parse_collect(task_id, argv, TrainCfg.default(task_id), ("task",))
    # planners ignore these flags: reject them instead of collecting something else
    given = {
        "--noise": collect_cfg.noise,
        "--num-envs": collect_cfg.num_envs is not None,
        "--model": has_flag(argv, "--model"),
    }
    if any(given.values()):
        useless = ", ".join(flag for flag, is_given in given.items() if is_given)
        raise ConfigError(
            f"--policy {name} plans whole episodes, in --num-threads processes: leave out {useless}"
        )
    check_output(flags.output, flags.overwrite)
    # plan in worker processes and store the episodes
    num_workers = flags.num_threads or simulator_threads()
    begin = time.perf_counter()
    with stop_signals() as stop:
        planner: Planner = load(spec.planners[name])(
            cfg.task, min(num_workers, collect_cfg.n_episodes), flags.time_limit
        )
        with (
            contextlib.closing(planner),
            DemoWriter(
                flags.output, _describe_planned(planner, cfg, name, collect_cfg), flags.overwrite
            ) as writer,
            ProgressBar(collect_cfg.n_episodes, unit="episodes", title="collect") as bar,
        ):
            collected = collect_planned(
                planner, collect_cfg, writer, stopped=lambda: stop.signal is not None, on_progress=bar.update
            )
    minutes = (time.perf_counter() - begin) / 60
    return _report_collected(flags.output, writer.published, collected, collect_cfg, minutes, stop.signal)


def _describe_planned(planner: Planner, cfg: TrainCfg, name: str, collect_cfg: CollectCfg) -> dict[str, Any]:
    """The description stored in a file of planned episodes."""
    settings = dataclasses.replace(cfg, task=planner.task).to_dict()["task"]
    return describe(
        cfg.task_id,
        settings,
        max_episode_steps=planner.max_episode_steps,
        control_hz=planner.control_hz,
        action_unit=list(planner.action_unit),
        action_unit_name=planner.action_unit_name,
        source_type=name,
        signature=sign_task_settings(cfg.task_id, settings),
        source_desc=planner.description,
        collected={
            name: getattr(collect_cfg, name)
            for name in ("only_success", "noise", "noise_correlation", "first_seed")
        },
    )


def _parse_collect(
    task_id: str, argv: Sequence[str], cfg: TrainCfg, parts: Sequence[str] = ("task", "base")
) -> tuple[CollectFlags, CollectCfg, TrainCfg]:
    groups = {
        "own": CollectFlags(),
        "collect_cfg": CollectCfg(),
        **{name: getattr(cfg, name) for name in parts},
    }
    parsed = parse_flags(groups, argv, f"demos collect {task_id}", "Run a policy and store its episodes.")
    flags: CollectFlags = parsed.pop("own")
    collect_cfg: CollectCfg = parsed.pop("collect_cfg")
    cfg = dataclasses.replace(cfg, **parsed)
    if flags.num_threads is not None:
        cfg = replace_fields(cfg, {"num_threads": flags.num_threads})
    return flags, collect_cfg, cfg


def _make_env(cfg: TrainCfg, collect_cfg: CollectCfg) -> ResidualEnv:
    """`num_envs` envs, but at most one per episode; without `num_envs`, as many as fit into memory."""
    num_envs = min(collect_cfg.num_envs or NUM_ENVS, collect_cfg.n_episodes)
    env = make_residual_env(cfg, num_envs)
    # The memory of one env is known only once the env exists.
    if collect_cfg.num_envs is None and max_envs_in_memory(env.vec_env) < num_envs:
        num_envs = max_envs_in_memory(env.vec_env)
        env.close()
        env = make_residual_env(cfg, num_envs)
    return env


def _describe(
    env: ResidualEnv, cfg: TrainCfg, exported: ExportedPolicy | None, collect_cfg: CollectCfg
) -> dict[str, Any]:
    """The description stored in the file."""
    plain = cfg.to_dict()
    name = f"base policy {cfg.base_policy_id!r}"
    residual = None
    if exported is not None:
        name += (
            f" with a residual ({cfg.learner_id}, {exported.step} steps of training, scale "
            f"{exported.residual_scale:g})"
        )
        residual = {
            "learner": cfg.learner_id,
            "step": exported.step,
            "residual_scale": exported.residual_scale,
            **plain["residual"],
        }
    settings = task_settings(cfg, env.vec_env)
    return describe(
        cfg.task_id,
        settings,
        max_episode_steps=env.vec_env.max_episode_steps,
        control_hz=env.vec_env.control_hz,
        **action_units(env.vec_env),
        signature=sign_task_settings(cfg.task_id, settings),
        source_type="policy" if exported is None else "rl",
        source_desc=name,
        policy={"base_policy": cfg.base_policy_id, "base": plain["base"], "residual": residual},
        collected={
            name: getattr(collect_cfg, name)
            for name in ("only_success", "noise", "noise_correlation", "first_seed")
        },
    )


def _report_collected(
    out: Path,
    stored: int,
    collected: CollectionStats,
    collect_cfg: CollectCfg,
    minutes: float,
    signal: int | None,
) -> int:
    rate = (
        f"{collected.solved} of {collected.ran} episodes succeeded"
        if collected.ran
        else "no episode was complete"
    )
    if collected.failed:
        rate += f", {len(collected.failed)} could not be planned"
        for lost in collected.failed:
            print(
                f"residual-rl: the episode of seed {lost.seed} could not be planned: {lost.why}",
                file=sys.stderr,
            )
    # interrupted: the exit code of the signal
    where = f"{out} contains {stored} episodes" if stored else "nothing was written"
    if signal is not None and stored < collect_cfg.n_episodes:
        print(f"residual-rl: interrupted; {rate}, {where}", file=sys.stderr)
        return 128 + signal
    if stored < collect_cfg.n_episodes:
        raise ConfigError(
            f"{rate}, and {collect_cfg.n_episodes} were requested: {where}; "
            "use a better --policy or less --noise"
        )
    # all requested episodes are stored
    speed = f"{collected.ran / minutes:,.0f} episodes per minute" if minutes else ""
    Console().say(f"{where} ({out.stat().st_size / 1e6:.1f} MB); {rate}; {speed}")
    return 0
