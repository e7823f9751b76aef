"""Flags from the dataclasses of a task, a base policy, a learner and a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from residual_rl.config import TrainCfg
from residual_rl.errors import ConfigError


def split_target(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The first argument, if it is not a flag, and the rest."""
    if argv and not argv[0].startswith("-"):
        return argv[0], list(argv[1:])
    return None, list(argv)


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
