"""Settings that must not be taken from another person's file without the user's consent.

A field declares its kind in its annotation:

    switch: CodeName = ""          # "module:function", which is imported and called
    host: Address = "127.0.0.1"    # where observations and a token are sent

`sensitive_values` lists those of a dataclass instance; `residual_rl.utils.consent` decides about them.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

Kind = Literal["code", "trust", "address", "output"]
DESCRIPTIONS: dict[Kind, str] = {
    "code": "names code to import",
    "trust": "lets files run code",
    "address": "is a network address",
    "output": "is a path to write to",
}
"""What a field of each kind does, in messages."""


@dataclass(frozen=True)
class Sensitive:
    """Annotation of a field that a file alone may not fill.

    Args:
        kind: what the field does.
        applies: whether a value needs consent; by default all but empty ones do.
    """

    kind: Kind
    applies: Callable[[Any], bool] = bool
    aliases: tuple[str, ...] = ()
    """Other names of the field's flag; filled in from the field's annotations."""


CodeName = Annotated[str, Sensitive("code")]
"""`module:attribute`, or a module, that is imported."""
CodeNames = Annotated[tuple[str, ...], Sensitive("code")]
"""Several of them."""
Trust = Annotated[bool, Sensitive("trust")]
"""Permission to read files that can run code."""
Address = Annotated[str, Sensitive("address")]
"""Host, URL or account that is connected to; loopback addresses are no exception."""
HubName = Annotated[str, Sensitive("address", lambda name: bool(name) and not Path(name).exists())]
"""A local path, or the name of a repository on a hub, which is downloaded."""


@dataclass(frozen=True)
class SensitiveValue:
    """The value of a sensitive field."""

    path: str
    """Path of the field in the settings, e.g. `base.switch`."""
    kind: Kind
    values: tuple[str, ...]
    """The value as text; several for a field that is a list."""
    aliases: tuple[str, ...] = ()
    """Other names of the field's flag."""


def sensitive_values(cfg: Any, path: str = "") -> list[SensitiveValue]:
    """The values in a dataclass and in the dataclasses inside it that need consent.

    A dataclass whose fields hold the settings of others as text gives them, by path, with a method
    `nested_settings()`.
    """
    return list(_walk(cfg, path))


def sensitive_fields(cls: type) -> dict[str, Sensitive]:
    """The sensitive fields of a dataclass, by name."""
    return {name: mark for name, mark in _marks(cls).items() if mark is not None}


def _walk(cfg: Any, path: str) -> Iterator[SensitiveValue]:
    if not dataclasses.is_dataclass(cfg) or isinstance(cfg, type):
        return
    prefix = f"{path}." if path else ""
    marks = _marks(type(cfg))
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        mark = marks[field.name]
        if mark is not None and mark.applies(value):
            items = value if isinstance(value, tuple) else (value,)
            yield SensitiveValue(f"{prefix}{field.name}", mark.kind, tuple(map(str, items)), mark.aliases)
        yield from _walk(value, f"{prefix}{field.name}")
    if hasattr(cfg, "nested_settings"):
        for name, nested in cfg.nested_settings().items():
            yield from _walk(nested, f"{prefix}{name}")


@functools.cache
def _marks(cls: type) -> dict[str, Sensitive | None]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: _mark(hints[field.name]) for field in dataclasses.fields(cls)}


def _mark(hint: Any) -> Sensitive | None:
    """The annotation of a type, also where it is an option of a union."""
    metadata = getattr(hint, "__metadata__", ())
    own = [item for item in metadata if isinstance(item, Sensitive)]
    inner = [_mark(option) for option in typing.get_args(hint) if option is not Ellipsis]
    found = own + [mark for mark in inner if mark is not None]
    if not found:
        return None
    # tyro's annotation of the field holds the aliases of its flag
    aliases = [alias for item in metadata for alias in getattr(item, "aliases", None) or ()]
    return dataclasses.replace(
        found[0], aliases=tuple(alias.lstrip("-").replace("-", "_") for alias in aliases)
    )
