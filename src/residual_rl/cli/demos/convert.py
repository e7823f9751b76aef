"""`residual-rl demos convert`: convert demonstrations of another program to a file of ours."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from residual_rl.cli.demos.common import require_demos_file
from residual_rl.cli.flags import HELP, parse_flags, parse_head
from residual_rl.config import TrainCfg, sign_task_settings
from residual_rl.demos.convert import episodes_for_env
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.writer import DemoWriter, action_units, check_output, describe
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.factory import task_settings
from residual_rl.registry import TASKS, load
from residual_rl.runs.progress_bar import ProgressBar
from residual_rl.utils.console import Console


@dataclasses.dataclass(frozen=True)
class ConvertFlags:
    """Flags of `demos convert` that are not settings of the task."""

    task: str = ""
    """Task of the demonstrations; its settings are flags too."""
    output: Annotated[Path, tyro.conf.arg(aliases=["--out"])] = Path("demos.h5")
    """File to write; its description is written to a file of the same name with the suffix .json."""
    overwrite: bool = False
    """Replace an existing file."""


def main(argv: Sequence[str]) -> int:
    """Parse, write, and print a summary."""
    about = "Convert demonstrations of Minari or robomimic to a file of this program."
    file, rest = require_demos_file(argv, "convert", about.rstrip("."))
    head = parse_head(ConvertFlags(), rest, f"demos convert {file}")
    if not head.task and HELP.isdisjoint(rest):
        raise ConfigError(
            f"{file} is to be used with a task: name it with --task TASK (`residual-rl list` shows the tasks)"
        )
    # the settings of the task become flags
    cfg = TrainCfg.default(head.task) if head.task else None
    groups = {"own": ConvertFlags(), "settings": None if cfg is None else cfg.task}
    parsed = parse_flags(groups, rest, f"demos convert {file}", about)
    assert cfg is not None  # help has ended the process
    return _convert(file, parsed["own"], dataclasses.replace(cfg, task=parsed["settings"]))


def _convert(file: str, flags: ConvertFlags, cfg: TrainCfg) -> int:
    out = check_output(flags.output, flags.overwrite)
    with Demonstrations.open(file) as demos, contextlib.ExitStack() as stack:
        # one env, for the names and sizes of its observations and actions
        env: VecEnv = load(TASKS.get(cfg.task_id).make)(cfg.task, 1, 1, "cpu")
        stack.callback(env.close)
        settings = task_settings(cfg, env)
        info = describe(
            cfg.task_id,
            settings,
            max_episode_steps=env.max_episode_steps,
            control_hz=env.control_hz,
            **action_units(env),
            source_type=demos.info["source_type"],
            source_desc=demos.info["source_desc"],
            signature=sign_task_settings(cfg.task_id, settings),
        )
        # the episodes
        writer = stack.enter_context(DemoWriter(out, info, flags.overwrite))
        bar = stack.enter_context(ProgressBar(len(demos), unit="episodes", title="convert"))
        solved = []
        for demo in episodes_for_env(demos, cfg, env):
            writer.add(demo)
            solved.append(demo.succeeded)
            bar.update(writer.num_episodes, None)
    known = [one for one in solved if one is not None]
    success = f"{sum(known)} of {len(known)} succeed" if known else "their success is unknown"
    Console().say(f"{out} contains {len(solved)} episodes of task {cfg.task_id!r}; {success}")
    return 0
