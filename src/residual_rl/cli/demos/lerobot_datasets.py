"""`residual-rl demos to-lerobot` and `from-lerobot`: convert demonstrations to and from LeRobot datasets."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from residual_rl.cli.flags import HELP, parse_flags, parse_head
from residual_rl.config import TrainCfg, read_task_settings, sign_task_settings
from residual_rl.demos.foreign import demo_in_task
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.writer import DemoWriter, action_units, check_output, describe
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.lerobot.dataset_export import ExportCfg, export
from residual_rl.lerobot.dataset_import import LAG, Converter, ImportCfg, Recording
from residual_rl.lerobot.plain_import import PlainConverter
from residual_rl.registry import TASKS, load
from residual_rl.runs.progress_bar import ProgressBar
from residual_rl.utils.console import Console
from residual_rl.utils.files import plain


@dataclasses.dataclass(frozen=True)
class ExportFlags:
    """Flags of `demos to-lerobot` that are not settings of the conversion."""

    output_dir: Annotated[Path, tyro.conf.arg(aliases=["--out", "--output"])]
    """Folder of the dataset, which must not exist."""


def to_lerobot(argv: Sequence[str]) -> int:
    """Parse, write, and print a summary."""
    file, rest = _first(argv, "to-lerobot FILE", "a file of demonstrations")
    about = "Write demonstrations as a LeRobotDataset v3."
    parsed = parse_flags({"own": ExportFlags, "cfg": ExportCfg()}, rest, f"demos to-lerobot {file}", about)
    folder: Path = parsed["own"].output_dir
    with (
        Demonstrations.open(file) as demos,
        ProgressBar(len(demos), unit="episodes", title="to-lerobot") as bar,
    ):
        written = export(demos, folder, parsed["cfg"], lambda done: bar.update(done, None))
    text = (
        f"{folder} contains {written.episodes} episodes, {written.frames:,} frames at {written.fps} Hz "
        "(LeRobotDataset v3)"
    )
    Console().say(text)
    return 0


@dataclasses.dataclass(frozen=True)
class ImportFlags:
    """Flags of `demos from-lerobot` that are not settings of the conversion."""

    task: str = ""
    """Task of the recording. Datasets of `demos to-lerobot` contain it."""
    output: Annotated[Path, tyro.conf.arg(aliases=["--out"])] = Path("demos.h5")
    """File to write; its description is written to a file of the same name with the suffix .json."""
    overwrite: bool = False
    """Replace an existing file."""


def from_lerobot(argv: Sequence[str]) -> int:
    """Parse, write, and print a summary that includes the changes."""
    source, rest = _first(argv, "from-lerobot FOLDER|OWNER/NAME", "a LeRobot dataset")
    wants_help = bool(HELP & set(rest))
    # the task: from --task, or from a dataset that `demos to-lerobot` wrote
    recording = None if wants_help else Recording(source)
    head = parse_head(ImportFlags(), rest, "demos from-lerobot")
    task_id = head.task or (recording.side["task"] if recording and recording.side else None)
    if task_id is None and not wants_help:
        raise ConfigError(
            f"{source} does not name its task; give it with --task TASK (`residual-rl list` shows the tasks)"
        )
    # the settings of the task become flags, with the stored ones as defaults
    settings = None if task_id is None else _defaults(task_id, recording).task
    groups = {"own": ImportFlags(task=task_id or ""), "cfg": ImportCfg(), "settings": settings}
    about = "Write the episodes of a LeRobotDataset v3 as demonstrations of a task."
    parsed = parse_flags(groups, rest, f"demos from-lerobot {source}", about)
    assert recording is not None  # help has ended the process
    assert task_id is not None
    return _write(recording, task_id, parsed["own"], parsed["cfg"], parsed["settings"])


def _write(recording: Recording, task_id: str, flags: ImportFlags, cfg: ImportCfg, settings: Any) -> int:
    out = check_output(flags.output, flags.overwrite)
    settings = _long_enough(settings, recording)
    env: VecEnv = load(TASKS.get(task_id).make)(settings, 1, 1, "cpu")
    with contextlib.closing(env):
        # the conversion replays each recording in the env, which computes the values that the dataset lacks
        converter: Converter | PlainConverter = (
            Converter(recording, env, task_id, cfg)
            if env.action_centre is None
            else PlainConverter(recording, env, task_id, cfg)
        )
        plain_settings = plain(settings)
        info = describe(
            task_id,
            plain_settings,
            max_episode_steps=env.max_episode_steps,
            control_hz=env.control_hz,
            **action_units(env),
            source_type="lerobot",
            signature=sign_task_settings(task_id, plain_settings),
            source_desc=f"LeRobot dataset {recording.source}",
            lerobot={"fps": recording.fps, **dataclasses.asdict(cfg)},
        )
        total = recording.dataset.num_episodes
        with (
            DemoWriter(out, info, flags.overwrite) as writer,
            ProgressBar(total, unit="episodes", title="from-lerobot") as bar,
        ):
            for demo in converter.episodes():
                writer.add(demo_in_task(demo, task_id, settings, recording.source))
                bar.update(writer.num_episodes, None)
    _print_summary(out, writer.published, converter)
    return 0


def _defaults(task_id: str, recording: Recording | None) -> TrainCfg:
    """The task's settings: those stored in the dataset, otherwise the defaults, with absolute joint targets
    if the task has such a control mode."""
    cfg = TrainCfg.default(task_id)
    side = recording.side if recording else None
    if recording is not None and side is not None and side["task"] == task_id:
        try:
            signature = side.get("signature")
            task = read_task_settings(task_id, side["settings"], Path(recording.source), signature)
            return dataclasses.replace(cfg, task=task)
        except (UnknownNameError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{recording.source} contains settings that this release does not have: {error}"
            ) from error
    modes = {field.name: field for field in dataclasses.fields(cfg.task)}
    return (
        dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, control_mode="joint_target"))
        if "control_mode" in modes
        else cfg
    )


def _long_enough(settings: Any, recording: Recording) -> Any:
    """The settings with a step limit of at least the longest episode, so that no replay is truncated."""
    seconds = max(float(episode.frames.times[-1]) for episode in recording.episodes())
    longest = round(seconds * recording.fps)
    limit = getattr(settings, "max_episode_steps", None)
    if limit is not None and longest > limit:
        return dataclasses.replace(settings, max_episode_steps=longest)
    return settings


def _print_summary(out: Path, episodes: int, converter: Converter | PlainConverter) -> None:
    console, done = Console(), converter.conversion
    lines = [f"{out} contains {episodes} episodes, {done.steps:,} steps"]
    if done.late:
        lines.append(
            f"in {done.late:,} steps, the target of a joint lags more than {LAG:g} degrees or percent behind "
            f"the recording, by {done.largest:.1f} at most: the actions of the task are too slow"
        )
    if done.clipped:
        lines.append(f"{done.clipped:,} values were clipped to {done.bounds}")
    for line in lines:
        console.say(line)


def _first(argv: Sequence[str], usage: str, what: str) -> tuple[str, list[str]]:
    """The first argument and the rest."""
    if argv and not argv[0].startswith("-"):
        return argv[0], list(argv[1:])
    if HELP & set(argv):
        return usage.partition(" ")[2], [word for word in argv if word in HELP]
    raise ConfigError(f"demos {usage.partition(' ')[0]} needs {what}: residual-rl demos {usage} [options]")
