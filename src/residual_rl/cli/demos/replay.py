"""`residual-rl demos replay`: execute stored actions again and compare the episodes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from residual_rl.cli.demos.common import YES_NO, require_demos_file
from residual_rl.cli.flags import parse_flags
from residual_rl.cli.video import can_record, try_video
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.replay import ReplayResult, make_env, replay, write_replay_video
from residual_rl.runs.progress_bar import ProgressBar
from residual_rl.utils.console import Console
from residual_rl.utils.validation import CheckedCfg, NonNegativeInt, NumEnvs, NumThreads

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ReplayFlags(CheckedCfg):
    """Flags of `demos replay`."""

    episodes: tuple[NonNegativeInt, ...] = ()
    """Episodes to replay. Empty: all."""
    save_video: Path | None = None
    """Write a video of the replayed episodes to this file; without a value, to FILE.mp4."""
    num_envs: NumEnvs = 16
    """Episodes replayed together; the results do not depend on it."""
    num_threads: NumThreads = 0
    """Simulator threads; 0 means OMP_NUM_THREADS, or else one per CPU core."""


def main(argv: Sequence[str]) -> int:
    """Replay the demonstrations and print the differences."""
    file, rest = require_demos_file(argv, "replay", "Replay demonstrations in simulation")
    about = "Execute the stored actions again, and compare the episodes with the stored ones."
    flags: ReplayFlags = parse_flags(
        {"own": ReplayFlags()}, _with_video_path(rest, file), f"demos replay {file}", about
    )["own"]
    # one torch thread: the simulator's threads use the cores
    torch.set_num_threads(1)
    console = Console()
    with Demonstrations.open(file) as demos:
        episodes = flags.episodes or range(len(demos))
        for i in episodes:
            demos.episode(i, obs=())  # report damaged episodes before running any
        env = make_env(demos, min(flags.num_envs, len(episodes)), flags.num_threads)
        video = flags.save_video if flags.save_video is not None and can_record(env, console) else None
        # warn about missing seeds and observations
        unseeded = sum(demos.seed(i) is None for i in episodes)
        if unseeded:
            _log.warning(
                "%d of %d episodes have no seed of their own: what is not stored of their start, such as the "
                "shapes of objects, is that of seed 0",
                unseeded,
                len(episodes),
            )
        absent = sorted(set(demos.obs_shapes) - set(env.single_observation_space.spaces))  # type: ignore[attr-defined]
        if absent:
            _log.warning("the task does not observe %s, so they are not compared", ", ".join(absent))
        # Replay the episodes.
        results: list[ReplayResult] = []
        with ProgressBar(len(episodes), unit="episodes", title="replay") as bar:
            for result in replay(env, demos, episodes, keep_scenes=video is not None):
                results.append(result)
                bar.update(len(results), sum(r.success for r in results) / len(results))
    # print the results, and write the video
    console.print(_replay_table(results))
    if video is not None and try_video(lambda: write_replay_video(video, env, results), console):
        console.say(f"Video: {video}")
    deterministic = env.deterministic
    env.close()
    # the exit code is 0 only if all episodes with a known outcome were reproduced
    known = [r for r in results if r.reproduced is not None]
    same = sum(bool(r.reproduced) for r in known)
    drift = max(results, key=lambda r: r.drift.value).drift
    note = "" if deterministic else "; this simulator is not deterministic"
    console.say(f"{same} of {len(known)} episodes end as stored; largest drift {drift}{note}")
    return 0 if same == len(known) else 1


def _with_video_path(argv: Sequence[str], file: str) -> list[str]:
    """The arguments; `--save-video` without a value gets FILE.mp4 as its value."""
    words: list[str] = []
    for i, word in enumerate(argv):
        words.append(word)
        if word in ("--save-video", "--save_video") and (i + 1 == len(argv) or argv[i + 1].startswith("-")):
            words.append(str(Path(file).with_suffix(".mp4")))
    return words


def _replay_table(results: Sequence[ReplayResult]) -> Table:
    table = Table("episode", "seed", "steps", "success stored", "now", "start differs by", "drift")
    for r in results:
        steps = str(r.steps) if r.steps == r.demo_steps else f"{r.steps} of {r.demo_steps}"
        seed = "–" if r.seed is None else str(r.seed)
        table.add_row(
            str(r.episode),
            seed,
            steps,
            YES_NO[r.stored_success],
            YES_NO[r.success],
            str(r.start),
            str(r.drift),
        )
    return table
