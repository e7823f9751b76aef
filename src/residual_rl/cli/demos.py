"""`residual-rl demos`: collect demonstrations, look at them, replay them, and convert them to and from LeRobot's format."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from residual_rl.cli.flags import HELP, flat_field, parse_flags, require_target, settings_as_flags
from residual_rl.errors import ConfigError, MissingDependencyError, UnknownNameError
from residual_rl.imitation.demonstrations import Demonstrations
from residual_rl.imitation.replay import Replayed, make_env, replay, write_replay_video
from residual_rl.logger import ProgressBar
from residual_rl.registry import load

SUBCOMMANDS = {
    "collect": "run a policy and store its episodes: residual-rl demos collect TASK [options]",
    "info": "what a file holds: residual-rl demos info FILE [--episodes]",
    "replay": "execute the stored actions again: residual-rl demos replay FILE [options]",
    "to-lerobot": "write a LeRobot dataset from a file of demonstrations",
    "from-lerobot": "write a file of demonstrations from a LeRobot dataset",
}
_ELSEWHERE = {
    "collect": "demos_collect:collect_episodes",
    "to-lerobot": "demos_lerobot:to_lerobot",
    "from-lerobot": "demos_lerobot:from_lerobot",
}
"""Where the subcommands are that this module does not hold."""
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
    own: dict[str, Callable[[Sequence[str]], int]] = {"info": _info, "replay": _replay}
    command = own[argv[0]] if argv[0] in own else load(f"residual_rl.cli.{_ELSEWHERE[argv[0]]}")
    return command(argv[1:])


def _require_file(argv: Sequence[str], command: str, what: str) -> tuple[str, list[str]]:
    """The first argument and the rest; see `require_target`."""
    if HELP.isdisjoint(argv) and (not argv or argv[0].startswith("-")):
        raise ConfigError(f"demos {command} needs a file of demonstrations: residual-rl demos {command} FILE [options]")
    return require_target(argv, f"demos {command}", "FILE", what)


# --- info -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class InfoFlags:
    """What to tell of a file."""

    episodes: bool = False
    """List every episode."""


def _info(argv: Sequence[str]) -> int:
    file, rest = _require_file(argv, "info", "Tell what a file of demonstrations holds")
    what = "Tell what a file of demonstrations holds."
    flags: InfoFlags = parse_flags([flat_field("own", InfoFlags)], rest, f"demos info {file}", what).own
    console = Console()
    with Demonstrations.open(file) as demos:
        parts = [demos.episode(i, obs=()) for i in range(len(demos))]
        info, lengths = demos.info, [len(part) for part in parts]
        known = [part.succeeded for part in parts if part.succeeded is not None]
        low, high = min(float(part.actions.min()) for part in parts), max(float(part.actions.max()) for part in parts)
        rows = {
            "task": f"{demos.env_id} ({'as residual-rl stores it' if demos.own else 'as ManiSkill stores it'})",
            **({"settings": settings_as_flags(demos.task_id, demos.task_settings) or "the task's own"} if demos.own else {}),
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
    flags: ReplayFlags = parse_flags([flat_field("own", ReplayFlags)], _with_video_path(rest, file), f"demos replay {file}", what).own
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
