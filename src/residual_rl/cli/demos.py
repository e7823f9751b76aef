"""`residual-rl demos`: collect demonstrations, look at them, replay them, and convert them to and from LeRobot's format."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from residual_rl.build import make_residual_env
from residual_rl.cli.flags import HELP, parts_of, peek, require_target
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.errors import ConfigError, MissingDependencyError, UnknownNameError
from residual_rl.evaluate import no_residual
from residual_rl.imitation.collect import NUM_ENVS, CollectCfg, Collected, collect, worlds_that_fit
from residual_rl.imitation.demo_writer import DemoWriter, check_output, describe
from residual_rl.imitation.demonstrations import Demonstrations
from residual_rl.imitation.replay import Replayed, make_env, replay, write_replay_video
from residual_rl.logger import ProgressBar
from residual_rl.policy import POLICY_FILE, ExportedPolicy, find_policy, load_policy
from residual_rl.registry import TASKS
from residual_rl.residual_env import ResidualEnv
from residual_rl.runner import stop_signals

ORACLE = "oracle"
"""What `--policy` calls the task's `TaskSpec.oracle`, whichever base policy that is."""
_PARTS = ("task", "base")
SUBCOMMANDS = {
    "collect": "run a policy and store its episodes: residual-rl demos collect TASK [options]",
    "info": "what a file holds: residual-rl demos info FILE [--episodes]",
    "replay": "execute the stored actions again: residual-rl demos replay FILE [options]",
    "to-lerobot": "write a LeRobot dataset from a file of demonstrations",
    "from-lerobot": "write a file of demonstrations from a LeRobot dataset",
}
_log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Pick the subcommand."""
    if not argv or argv[0] in HELP:
        width = max(map(len, SUBCOMMANDS))
        lines = [f"  {name:<{width}}  {what}" for name, what in SUBCOMMANDS.items()]
        print("\n".join(["usage: residual-rl demos SUBCOMMAND [options]      (SUBCOMMAND --help tells all options)", "", *lines]))
        return 0 if argv else 2
    if argv[0] not in SUBCOMMANDS:
        raise UnknownNameError("subcommand of demos", argv[0], SUBCOMMANDS)
    if argv[0] in ("to-lerobot", "from-lerobot"):
        code: int = getattr(importlib.import_module("residual_rl.cli.demos_lerobot"), argv[0].replace("-", "_"))(argv[1:])
        return code
    return {"collect": _collect, "info": _info, "replay": _replay}[argv[0]](argv[1:])


def _require_file(argv: Sequence[str], command: str, what: str) -> tuple[str, list[str]]:
    """The first argument and the rest; see `require_target`."""
    if HELP.isdisjoint(argv) and (not argv or argv[0].startswith("-")):
        raise ConfigError(f"demos {command} needs a file of demonstrations: residual-rl demos {command} FILE [options]")
    return require_target(argv, f"demos {command}", "FILE", what)


def _field(name: str, cls: type) -> tuple[str, Any, Any]:
    """A dataclass field whose own fields become flags. What it refuses is then raised as it is, and not framed by tyro."""
    return name, Annotated[cls, tyro.conf.arg(name="")], dataclasses.field(default=cls())


def _flags(fields: Sequence[tuple[str, Any, Any]], argv: Sequence[str], prog: str, description: str) -> Any:
    return tyro.cli(dataclasses.make_dataclass("Flags", fields), args=list(argv), prog=f"residual-rl demos {prog}", description=description)


# --- collect --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class CollectFlags:
    """Whose episodes to store, and where."""

    policy: str = ORACLE
    """`oracle` (what solves the task), a base policy of `residual-rl list`, or a run folder or model (base + residual)."""
    model: str = "best"
    """Of a run folder: best, final, interrupted, or the path of an exported policy."""
    out: Path = Path("demos.h5")
    """The file to write; a description goes beside it, with the ending .json."""
    overwrite: bool = False
    """Replace a file that is there."""
    num_threads: int | None = None
    """Simulator threads, 0 means one a CPU core; the episodes do not depend on it. None: as in training."""


def _collect(argv: Sequence[str]) -> int:
    task_id, rest = require_target(argv, "demos collect", "TASK", "Collect demonstrations")
    exported, cfg = _find_policy(task_id, peek(rest, "--policy") or ORACLE, peek(rest, "--model") or "best")
    flags, what, cfg = _parse_collect(task_id, rest, cfg)
    check_output(flags.out, flags.overwrite)
    torch.set_num_threads(cfg.run.torch_threads)
    env = _make_env(cfg, what)
    if exported is not None:
        env.residual_scale = exported.residual_scale
    policy = exported.actor(env) if exported else no_residual(env)
    begin = time.perf_counter()
    with (
        stop_signals() as stop,
        DemoWriter(flags.out, _describe(env, cfg, exported, what), flags.overwrite) as writer,
        ProgressBar(what.n_episodes, unit="episodes", title="collect") as bar,
    ):
        collected = collect(
            env,
            policy,
            what,
            writer,
            with_residual=exported is not None,
            stopped=lambda: stop.signal is not None,
            on_progress=bar.update,
        )
    env.close()
    minutes = (time.perf_counter() - begin) / 60
    return _tell_collected(flags.out, writer.published, collected, what, minutes, stop.signal)


def _find_policy(task_id: str, policy: str, model: str) -> tuple[ExportedPolicy | None, TrainCfg]:
    """The residual policy, if a run or a model is named, and the settings that go with what is named."""
    folder = Path(policy)
    if not folder.is_dir():
        oracle = TASKS.get(task_id).oracle
        if policy == ORACLE and oracle is None:
            raise ConfigError(f"task {task_id!r} names no oracle; --policy takes a base policy of `residual-rl list`, or a run folder")
        return None, TrainCfg.default(task_id, oracle if policy == ORACLE else policy)
    exported = load_policy(folder / POLICY_FILE if (folder / POLICY_FILE).is_file() else find_policy(folder, model))
    if exported.cfg.task_id != task_id:
        trained = exported.cfg.task_id
        raise ConfigError(f"{policy} was trained on task {trained!r}: residual-rl demos collect {trained} --policy {policy}")
    return exported, exported.cfg


def _parse_collect(task_id: str, argv: Sequence[str], cfg: TrainCfg) -> tuple[CollectFlags, CollectCfg, TrainCfg]:
    fields = [_field("own", CollectFlags), _field("what", CollectCfg), *parts_of(cfg, _PARTS)]
    flags = _flags(fields, argv, f"collect {task_id}", "Run a policy and store its episodes.")
    cfg = dataclasses.replace(cfg, **{name: getattr(flags, name) for name in _PARTS if getattr(cfg, name) is not None})
    if flags.own.num_threads is not None:
        cfg = replace_fields(cfg, {"num_threads": flags.own.num_threads})
    return flags.own, flags.what, cfg


def _make_env(cfg: TrainCfg, what: CollectCfg) -> ResidualEnv:
    """As many worlds as are asked for, and no more than there are episodes; without a number as many as memory allows."""
    num_envs = min(what.num_envs or NUM_ENVS, what.n_episodes)
    env = make_residual_env(cfg, num_envs)
    if what.num_envs is None and worlds_that_fit(env.env) < num_envs:
        num_envs = worlds_that_fit(env.env)
        env.close()
        env = make_residual_env(cfg, num_envs)
    return env


def _describe(env: ResidualEnv, cfg: TrainCfg, exported: ExportedPolicy | None, what: CollectCfg) -> dict[str, Any]:
    """The stamp of the file."""
    plain = cfg.to_dict()
    name = f"base policy {cfg.base_policy_id!r}"
    residual = None
    if exported is not None:
        name += f" with a residual ({cfg.learner_id}, {exported.step} steps of training, scale {exported.residual_scale:g})"
        residual = {"learner": cfg.learner_id, "step": exported.step, "residual_scale": exported.residual_scale, **plain["residual"]}
    return describe(
        cfg.task_id,
        plain["task"],
        max_episode_steps=env.env.max_episode_steps,
        control_hz=env.env.control_hz,
        action_size=env.env.action_size.tolist(),
        action_unit=env.env.action_unit,
        source_type="policy" if exported is None else "rl",
        source_desc=name,
        policy={"base_policy": cfg.base_policy_id, "base": plain["base"], "residual": residual},
        collected={name: getattr(what, name) for name in ("only_success", "noise", "noise_correlation", "first_seed")},
    )


def _tell_collected(out: Path, stored: int, collected: Collected, what: CollectCfg, minutes: float, signal: int | None) -> int:
    rate = f"{collected.solved} of {collected.ran} episodes succeeded" if collected.ran else "no episode was complete"
    where = f"{out} holds {stored} episodes" if stored else "nothing was written"
    if signal is not None and stored < what.n_episodes:
        print(f"residual-rl: interrupted; {rate}, {where}", file=sys.stderr)
        return 128 + signal
    if stored < what.n_episodes:
        raise ConfigError(f"{rate}, and {what.n_episodes} were asked for: {where}; take a better --policy or less --noise")
    speed = f"{collected.ran / minutes:,.0f} episodes a minute" if minutes else ""
    Console().print(f"{where} ({out.stat().st_size / 1e6:.1f} MB); {rate}; {speed}", soft_wrap=True, highlight=False)
    return 0


# --- info -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class InfoFlags:
    """What to tell of a file."""

    episodes: bool = False
    """List every episode."""


def _info(argv: Sequence[str]) -> int:
    file, rest = _require_file(argv, "info", "Tell what a file of demonstrations holds")
    flags: InfoFlags = _flags([_field("own", InfoFlags)], rest, f"info {file}", "Tell what a file of demonstrations holds.").own
    console = Console()
    with Demonstrations.open(file) as demos:
        parts = [demos.episode(i, obs=()) for i in range(len(demos))]
        info, lengths = demos.info, [len(part) for part in parts]
        known = [part.succeeded for part in parts if part.succeeded is not None]
        low, high = min(float(part.actions.min()) for part in parts), max(float(part.actions.max()) for part in parts)
        rows = {
            "task": f"{demos.task_id} ({'as residual-rl stores it' if demos.own else 'as ManiSkill stores it'})",
            "acted by": str(info.get("source_desc") or info.get("source_type") or "not told"),
            "episodes": f"{len(demos)}, {sum(lengths):,} steps",
            "success": f"{sum(known)} of {len(known)} ({100 * sum(known) / len(known):.1f} %)" if known else "not stored",
            "steps an episode": f"{min(lengths)} to {max(lengths)}, median {sorted(lengths)[len(lengths) // 2]}",
            "observations": ", ".join(f"{name} {list(shape)}" for name, shape in demos.obs_shapes.items()) or "none",
            "actions": f"[{demos.action_dim}], from {low:.3g} to {high:.3g}",
            "beside them": ", ".join(name for name in _BESIDE if _has(parts[0], name)) or "nothing",
            "noise": _noise_of(info),
            "size": f"{demos.path.stat().st_size / 1e6:.1f} MB",
        }
        table = Table("", str(demos.path), show_lines=False)
        for name, value in rows.items():
            table.add_row(name, value)
        console.print(table)
        if flags.episodes:
            console.print(_episode_table(demos, lengths, [part.succeeded for part in parts]))
    return 0


_BESIDE = ("base_actions", "residual_actions", "intended_actions", "rewards", "draws", "env_states")


def _has(demo: Any, name: str) -> bool:
    value = getattr(demo, name)
    return value is not demo.actions and (bool(value) if isinstance(value, dict) else value is not None)


def _noise_of(info: dict[str, Any]) -> str:
    collected = info.get("collected") or {}
    if not collected.get("noise"):
        return "none" if collected else "not told"
    return f"{collected['noise']:g}, correlation {collected['noise_correlation']:g}"


def _episode_table(demos: Demonstrations, lengths: list[int], success: list[bool | None]) -> Table:
    table = Table("episode", "seed", "steps", "success")
    for i, (entry, steps, solved) in enumerate(zip(demos.episodes, lengths, success, strict=True)):
        seed = entry.get("episode_seed")
        table.add_row(str(i), "–" if seed is None else str(seed), str(steps), _YES_NO[solved])
    return table


_YES_NO = {True: "yes", False: "no", None: "–"}


# --- replay ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ReplayFlags:
    """What to replay."""

    episodes: tuple[int, ...] = ()
    """Which episodes; none given: all."""
    save_video: Path | None = None
    """Write a video of them: to this file, or without a name to FILE.mp4."""
    num_envs: int = 16
    """Episodes replayed together; the results do not depend on it."""
    num_threads: int = 0
    """Simulator threads; 0 means one a CPU core."""

    def __post_init__(self) -> None:
        if self.num_envs < 1:
            raise ConfigError(f"num_envs must be at least 1, not {self.num_envs}")


def _replay(argv: Sequence[str]) -> int:
    file, rest = _require_file(argv, "replay", "Replay demonstrations in simulation")
    what = "Execute the stored actions again, and compare what happens with what was stored."
    flags: ReplayFlags = _flags([_field("own", ReplayFlags)], _with_video_path(rest, file), f"replay {file}", what).own
    torch.set_num_threads(1)
    console = Console()
    with Demonstrations.open(file) as demos:
        episodes = flags.episodes or range(len(demos))
        for i in episodes:
            demos.episode(i, obs=())  # what is wrong with one shows before the first is run
        env = make_env(demos, min(flags.num_envs, len(episodes)), flags.num_threads)
        unseeded = sum(demos.episodes[i].get("episode_seed") is None for i in episodes)
        if unseeded:
            _log.warning(
                "%d of %d episodes store no seed: what they do not store starts as the task draws it for seed 0", unseeded, len(episodes)
            )
        absent = sorted(set(demos.obs_shapes) - set(env.single_observation_space.spaces))  # type: ignore[attr-defined]
        if absent:
            _log.warning("this task does not observe %s: not compared", ", ".join(absent))
        results: list[Replayed] = []
        with ProgressBar(len(episodes), unit="episodes", title="replay") as bar:
            for result in replay(env, demos, episodes, keep_scenes=flags.save_video is not None):
                results.append(result)
                bar.update(len(results), sum(r.success for r in results) / len(results))
    console.print(_replay_table(results))
    if flags.save_video is not None:
        try:
            write_replay_video(flags.save_video, env, results)
            console.print(f"Video: {flags.save_video}", soft_wrap=True)
        except MissingDependencyError as error:
            console.print(f"no video: {error}", soft_wrap=True)
    deterministic = env.deterministic
    env.close()
    known = [r for r in results if r.reproduced is not None]
    same = sum(bool(r.reproduced) for r in known)
    drift = max(results, key=lambda r: r.drift.value).drift
    note = "" if deterministic else "; this simulator does not promise equal episodes"
    text = f"{same} of {len(known)} episodes end as they were stored; largest drift {drift}{note}"
    console.print(text, soft_wrap=True, highlight=False)
    return 0 if same == len(known) else 1


def _with_video_path(argv: Sequence[str], file: str) -> list[str]:
    """`--save-video` without a name means a video beside the file."""
    words: list[str] = []
    for i, word in enumerate(argv):
        words.append(word)
        if word in ("--save-video", "--save_video") and (i + 1 == len(argv) or argv[i + 1].startswith("-")):
            words.append(str(Path(file).with_suffix(".mp4")))
    return words


def _replay_table(results: Sequence[Replayed]) -> Table:
    table = Table("episode", "seed", "steps", "success stored", "now", "start differs by", "drift")
    for r in results:
        steps = str(r.steps) if r.steps == r.demo_steps else f"{r.steps} of {r.demo_steps}"
        seed = "–" if r.seed is None else str(r.seed)
        table.add_row(str(r.episode), seed, steps, _YES_NO[r.stored_success], _YES_NO[r.success], str(r.start), str(r.drift))
    return table
