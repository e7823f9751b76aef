"""Flags from the dataclasses of a task, a base policy, a learner and a run."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import tyro

from residual_rl.config import TrainCfg
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.registry import TASKS

HELP = {"-h", "--help"}


def require_target(argv: Sequence[str], command: str, target: str, what: str) -> tuple[str, list[str]]:
    """The first argument and the rest. Where it is a flag, or there is none, `ConfigError`, or what the command does if that is asked for.

    Args:
        argv: the arguments of the command.
        command: its name.
        target: what it needs, as usage lines say it, e.g. `TASK`.
        what: what it does, in a few words.
    """
    if argv and not argv[0].startswith("-"):
        return argv[0], list(argv[1:])
    usage = f"residual-rl {command} {target}"
    if HELP & set(argv):
        text = f"{what}: {usage} [options]   ({usage} --help tells all options)."
        tyro.cli(_nothing, args=["--help"], prog=f"residual-rl {command}", description=text)  # ends the process
    kind = target.replace("TASK", "a task id").replace("RUN", "a run folder").replace("|", " or ")
    raise ConfigError(f"{command} needs {kind}: put it first, {usage} [options]; `residual-rl list` shows the tasks")


def _nothing() -> None:
    """No options."""


def has_flag(argv: Sequence[str], name: str) -> bool:
    """Whether a flag is among the arguments, with a value or without."""
    return any(word.partition("=")[0].replace("_", "-") == name for word in argv)


def peek(argv: Sequence[str], *names: str) -> str | None:
    """The value of a flag under any of its names, before the flags that depend on it are known."""
    value = None
    for i, word in enumerate(argv):
        flag, equals, given = word.partition("=")
        if flag.replace("_", "-") in names:  # tyro takes either
            value = given if equals else argv[i + 1] if i + 1 < len(argv) else None
    return value


def _without_prefix(cls: type) -> Any:
    """A nested dataclass whose fields become flags of their own names."""
    return Annotated[cls, tyro.conf.arg(name="")]


def parts_of(cfg: TrainCfg, names: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """Dataclass fields `(name, type, default)` for parts of `cfg`: their flags have no prefix, but for the base policy's `--base.*`."""
    fields = []
    owner: dict[str, str] = {}
    for name in names:
        part = getattr(cfg, name)
        if part is not None:
            hint = type(part) if name == "base" else _without_prefix(type(part))
            for field in dataclasses.fields(part) if name != "base" else ():
                if field.name in owner:
                    both = f"{owner[field.name]} and {type(part).__name__}"
                    raise ConfigError(f"{both} both have a setting {field.name!r}: their flags would be the same, rename one")
                owner[field.name] = type(part).__name__
            fields.append((name, hint, dataclasses.field(default=part)))
    return fields


def settings_as_flags(task_id: str, settings: Mapping[str, Any]) -> str:
    """The flags that give a task the plain `settings`, where they differ from its defaults. Those of a task that is unknown here: all."""
    try:
        default = json.loads(json.dumps(dataclasses.asdict(TASKS.get(task_id).default_config())))
    except UnknownNameError:
        default = {}
    words = []
    for name, value in settings.items():
        if value is None or value == default.get(name):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, list) else [value]
            words.append(shlex.join([f"--{flag}", *map(str, values)]))
    return " ".join(words)


def flat_field(name: str, cls: type) -> tuple[str, Any, Any]:
    """A dataclass field whose own fields become flags. What it refuses is then raised as it is, and not framed by tyro."""
    return name, _without_prefix(cls), dataclasses.field(default=cls())


def parse_flags(fields: Sequence[tuple[str, Any, Any]], argv: Sequence[str], command: str, description: str) -> Any:
    """The values of the flags of `fields`, for `residual-rl COMMAND`."""
    cls = dataclasses.make_dataclass("Flags", fields)
    return tyro.cli(cls, args=list(argv), prog=f"residual-rl {command}", description=description)
