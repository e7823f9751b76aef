"""`residual-rl imitate`: train a base policy from demonstrations, or resume a training."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from residual_rl.cli.flags import HELP, has_flag, parse_flags, parse_head, settings_as_flags
from residual_rl.config import from_plain
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.imitation.config import ALGOS, ImitateCfg
from residual_rl.registry import TASKS, load
from residual_rl.runs.locate import run_to_resume
from residual_rl.runs.progress_bar import clock_time
from residual_rl.runs.run_folder import RunFolder, output_folder
from residual_rl.utils.console import Console
from residual_rl.utils.files import parse_json
from residual_rl.utils.text import shell_command

CHANGEABLE = {
    "total_steps",
    "amp",
    "compile",
    "device",
    "torch_threads",
    "num_threads",
    "log_freq",
    "val_freq",
    "eval_freq",
    "eval_episodes",
    "eval_share",
    "save_freq",
    "keep_checkpoints",
}
"""Settings that may change when a training is resumed."""


@dataclasses.dataclass(frozen=True)
class ImitateFlags:
    """Flags of `imitate` that are not settings."""

    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=["--out", "--output"])] = None
    """Run folder, which a base policy takes as its checkpoint. None: runs/imitate-ALGO-DATE-TIME."""
    resume: Path | None = None
    """Resume the training in this folder, with its settings and demonstrations. Without a value: resume the
    one in --output-dir."""


@dataclasses.dataclass(frozen=True)
class _Head:
    """Flags that the defaults of the others depend on."""

    algo: str = "flow"
    preset: str | None = None
    device: str = "cpu"
    init_from: str = ""
    adapt_obs: bool = False


def main(argv: Sequence[str]) -> int:
    """Parse, train, and print the outcome."""
    wants_help = bool(HELP & set(argv))
    rest, resumed = _take_resume(argv, wants_help)
    # the demonstrations and the defaults: stored ones, or those of the algorithm
    demos = Path(rest.pop(0)) if rest and not rest[0].startswith("-") else None
    if resumed is not None:
        stored_demos, default = _stored(resumed)
        demos = demos or stored_demos
    else:
        if demos is None and not wants_help:
            raise ConfigError(
                "imitate needs a file of demonstrations: put it first, residual-rl imitate DEMOS [options]"
            )
        default = _default(parse_head(_Head(), rest, "imitate DEMOS"), wants_help)
    # the settings
    groups = {"own": ImitateFlags(output_dir=resumed), "cfg": default}
    parsed = parse_flags(groups, rest, "imitate DEMOS", "Train a base policy from demonstrations.")
    assert demos is not None  # help has ended the process
    cfg: ImitateCfg = parsed["cfg"]
    with output_folder(parsed["own"].output_dir, "runs", f"imitate-{cfg.algo}") as out:
        if resumed is not None:
            _check_same(default, cfg)
        elif not RunFolder(out).is_empty:
            raise ConfigError(
                f"{out} is not empty; choose another --output-dir, or resume it: "
                f"{shell_command('imitate', '--resume', out)}"
            )
        # the training
        earlier = _finished_steps(out)
        summary = load(ALGOS[cfg.algo])(cfg, demos, out, resumed is not None)
    return _report(summary, out, earlier)


def _finished_steps(folder: Path) -> int | None:
    """Steps of the finished training in `folder`; None if there is none."""
    try:
        summary = parse_json(RunFolder(folder).summary_file.read_text(encoding="utf-8"))
        return int(summary["steps"]) if summary["finished"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _take_resume(argv: Sequence[str], wants_help: bool) -> tuple[list[str], Path | None]:
    """The arguments without `--resume`, and the folder to resume: the value of `--resume`, or else that of
    `--output-dir`."""
    if wants_help or not has_flag(argv, "--resume"):
        return list(argv), None
    # take out --resume and its value, if it has one
    (at,) = [i for i, word in enumerate(argv) if word.partition("=")[0] == "--resume"][:1]
    rest = [*argv[:at], *argv[at + 1 :]]
    folder = argv[at].partition("=")[2]
    if not folder and at < len(rest) and not rest[at].startswith("-"):
        folder = rest.pop(at)
    # without a value: the folder of --output-dir
    folder = folder or str(parse_head(ImitateFlags(), rest, "imitate DEMOS").output_dir or "")
    if not folder:
        raise ConfigError("--resume needs the folder of the training: residual-rl imitate --resume FOLDER")
    return rest, run_to_resume(Path(folder), "imitate")


def _default(head: _Head, wants_help: bool) -> ImitateCfg:
    """The defaults of the algorithm and the device, or of the model that training starts from."""
    if not head.init_from or wants_help:
        return ImitateCfg.default(head.algo, head.preset, head.device)
    from residual_rl.imitation.fine_tuning import defaults_from  # imports torch, which --help does not need

    return defaults_from(head.init_from, head.adapt_obs, head.preset, head.device)


def _stored(folder: Path) -> tuple[Path, ImitateCfg]:
    """The demonstrations and the settings of the training in `folder`. Raises `CheckpointError`."""
    file = folder / "config.json"
    try:
        data = parse_json(file.read_text(encoding="utf-8"))
        demos = Path(data.pop("demos"))
        return demos, from_plain(ImitateCfg, data)
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} does not exist; {folder} contains no training to resume: leave out --resume"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is not the configuration of an imitation training: {error}") from error


def _check_same(stored: ImitateCfg, cfg: ImitateCfg) -> None:
    for field in dataclasses.fields(cfg):
        old, new = getattr(stored, field.name), getattr(cfg, field.name)
        if old != new and field.name not in CHANGEABLE:
            raise ConfigError(
                f"{field.name} is {old} in the resumed training, not {new}; leave it out, or train "
                "into another --output-dir"
            )


def _report(summary: dict[str, Any], out: Path, earlier: int | None) -> int:
    """Print the outcome, given the steps of a training that had finished before; returns the exit code."""
    console = Console()
    steps, took = f"{summary['steps']:,} steps", clock_time(summary["wall_time"])
    if not summary["finished"]:
        console.say(f"Stopped after {steps}, saved. Resume with: {shell_command('imitate', '--resume', out)}")
        return 128 + int(summary["signal"])
    # finished: the best results and the path of the model
    found = []
    if summary["best_success_rate"] is not None:
        found.append(f"{100 * summary['best_success_rate']:.1f} % success in an evaluation during training")
    if summary["best_val_loss"] is not None:
        found.append(f"validation loss {summary['best_val_loss']:.4f}")
    done = f"Trained {steps} in {took}"
    if earlier == summary["steps"]:
        done = f"Nothing to train: the model has all of its {steps} (--total-steps N trains up to N)"
    console.say(f"{done}; best: {', '.join(found) or 'not evaluated'}.")
    console.say(f"Model: {out / summary['model']}")
    # the next commands, with the task's settings as flags if the demonstrations name a task
    words = ["TASK"]
    if summary["task"] in {spec.id for spec in TASKS.all()}:
        settings = settings_as_flags(summary["task"], summary.get("task_settings") or {})
        words = [summary["task"], *shlex.split(settings)]
    words += ["--base-policy", summary["base_policy"], "--il-checkpoint", str(out)]
    console.say(f"Evaluate it: {shell_command('eval', *words, '--n-episodes', 200)}")
    console.say(f"Train a residual on it: {shell_command('train', *words)}")
    return 0
