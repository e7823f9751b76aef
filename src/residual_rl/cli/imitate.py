"""`residual-rl imitate`: train a base policy from demonstrations, or go on with such a training."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from residual_rl.cli.flags import HELP, has_flag, peek, settings_as_flags
from residual_rl.config import from_plain
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.imitation.config import ALGOS, ImitateCfg
from residual_rl.registry import load
from residual_rl.runs.progress_bar import clock_time

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
"""Settings that may be others when a training goes on."""


@dataclasses.dataclass(frozen=True)
class _Own:
    """What is not a setting of the training."""

    out: Path | None = None
    """Run folder to make; a base policy takes it as its checkpoint. None: runs/imitate-ALGO-DATE-TIME."""
    resume: bool = False
    """Go on with the training in --out, with its settings."""


def main(argv: Sequence[str]) -> int:
    """Parse, train, and tell what came of it."""
    wants_help = bool(HELP & set(argv))
    if not wants_help and (not argv or argv[0].startswith("-")):
        raise ConfigError("imitate needs a file of demonstrations: put it first, residual-rl imitate DEMOS [options]")
    demos, rest = (Path(argv[0]), list(argv[1:])) if not argv[0].startswith("-") else (Path(), list(argv))
    resume = has_flag(rest, "--resume") and not wants_help
    stored = _stored(peek(rest, "--out")) if resume else None
    default = stored or _default(rest, wants_help)
    flags: Any = tyro.cli(
        _flags(default), args=rest, prog="residual-rl imitate DEMOS", description="Train a base policy from demonstrations."
    )
    cfg: ImitateCfg = flags.cfg
    if stored is not None:
        _check_same(stored, cfg)
    out = flags.own.out or Path("runs") / f"imitate-{cfg.algo}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not resume and out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose another --out, or go on with what it holds by --resume")
    summary = load(ALGOS[cfg.algo])(cfg, demos, out, resume)
    return _tell(summary, demos, out)


def _default(argv: Sequence[str], wants_help: bool) -> ImitateCfg:
    """The defaults that the algorithm and the device ask for, or the model that training begins with."""
    init_from, preset, device = peek(argv, "--init-from"), peek(argv, "--preset"), peek(argv, "--device") or "cpu"
    if not init_from or wants_help:
        return ImitateCfg.default(peek(argv, "--algo") or "flow", preset, device)
    from residual_rl.imitation.fine_tuning import defaults_from  # torch, which the help need not wait for

    return defaults_from(init_from, has_flag(argv, "--adapt-obs"), preset, device)


def _flags(cfg: ImitateCfg) -> type:
    return dataclasses.make_dataclass(
        "Imitate",
        [
            ("own", Annotated[_Own, tyro.conf.arg(name="")], dataclasses.field(default=_Own())),
            ("cfg", Annotated[ImitateCfg, tyro.conf.arg(name="")], dataclasses.field(default=cfg)),
        ],
    )


def _stored(out: str | None) -> ImitateCfg:
    """The settings of the training in `out`."""
    if not out or out.startswith("-"):
        raise ConfigError("--resume needs the folder of the training: residual-rl imitate DEMOS --out FOLDER --resume")
    file = Path(out) / "config.json"
    try:
        data = json.loads(file.read_text())
        data.pop("demos")
        return from_plain(ImitateCfg, data)
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist; {out} holds no training to go on with: leave out --resume") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is not the configuration of an imitation training: {error}") from error


def _check_same(stored: ImitateCfg, cfg: ImitateCfg) -> None:
    for field in dataclasses.fields(cfg):
        old, new = getattr(stored, field.name), getattr(cfg, field.name)
        if old != new and field.name not in CHANGEABLE:
            raise ConfigError(f"{field.name} is {old} in the training that goes on, not {new}; leave it out, or train into another --out")


def _tell(summary: dict[str, Any], demos: Path, out: Path) -> int:
    console = Console()
    steps, took = f"{summary['steps']:,} steps", clock_time(summary["wall_time"])
    if not summary["finished"]:
        console.print(f"Stopped after {steps}, saved. Go on with: residual-rl imitate {demos} --out {out} --resume", soft_wrap=True)
        return 128 + int(summary["signal"])
    found = []
    if summary["best_success_rate"] is not None:
        found.append(f"{100 * summary['best_success_rate']:.1f} % success in training's evaluation")
    if summary["best_val_loss"] is not None:
        found.append(f"validation loss {summary['best_val_loss']:.4f}")
    console.print(f"Trained {steps} in {took}; best: {', '.join(found) or 'not evaluated'}.", soft_wrap=True)
    console.print(f"Model: {out / summary['model']}", soft_wrap=True)
    settings = settings_as_flags(summary["task"], summary.get("task_settings") or {})
    words = f"{summary['task']} {settings} --base-policy {summary['base_policy']} --il-checkpoint {out}".replace("  ", " ")
    console.print(f"Evaluate it: residual-rl eval {words} --n-episodes 200", soft_wrap=True)
    console.print(f"Put a residual on it: residual-rl train {words}", soft_wrap=True)
    return 0
