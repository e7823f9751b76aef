"""Consent to what another person's file would make this process do.

Reading a file never imports a module that the file names, connects to an address in it, or writes to a path
in it. Such values are marked in the settings (`residual_rl.utils.sensitive`). `check_consent`, which all
readers of settings call, accepts them only from the user's own files (`residual_rl.utils.signature`) or where
the user repeats them on the command line, e.g. `--base.switch my_module:choose`, or, for any command and for
files that other files name, `--confirm base.switch=my_module:choose`.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from residual_rl.errors import ConfigError, ResidualRLError
from residual_rl.utils.sensitive import DESCRIPTIONS, SensitiveValue, sensitive_fields, sensitive_values
from residual_rl.utils.text import printable

CONFIRM = "--confirm"
"""The flag of every command that confirms a setting of a file."""


class ConsentError(ResidualRLError):
    """Settings in a file need the user's consent; the message gives the flags that express it."""


UNPREFIXED = ("task", "learner", "residual", "run")
"""Parts of the settings whose flags have no prefix."""


@dataclass(frozen=True)
class Consent:
    """What the user has confirmed in this process."""

    confirmed: frozenset[tuple[str, str]] = frozenset()
    """Pairs of a field's path and a value, as text."""
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The words after each flag of the command line, e.g. `base.host` to `("10.0.0.7",)`."""
    command: tuple[str, ...] = ()
    """The command line, for messages."""

    def typed(self, path: str, aliases: Sequence[str] = ()) -> tuple[str, ...] | None:
        """The words after the flag of the field `path`; None without it."""
        part, _, name = path.rpartition(".")
        names = (path, name, *aliases) if part in UNPREFIXED else (path, *aliases)
        return next((self.flags[n] for n in names if n in self.flags), None)

    def covers(self, path: str, value: str, aliases: Sequence[str] = ()) -> bool:
        """Whether the user has given this value of this field, by `--confirm` or by the field's own flag."""
        if (path, value) in self.confirmed or value in (self.typed(path, aliases) or ()):
            return True
        # the settings of others as text: `--base.settings 0.switch=my_module:choose`
        parents = path.split(".")
        return any(
            f"{'.'.join(parents[i:])}={value}" in (self.typed(".".join(parents[:i])) or ())
            for i in range(1, len(parents))
        )


_consent: ContextVar[Consent] = ContextVar("consent", default=Consent())  # noqa: B039


@contextlib.contextmanager
def consenting(*pairs: str, command: Sequence[str] = ()) -> Iterator[None]:
    """Confirm settings in files that the block reads.

    Args:
        pairs: `FIELD=VALUE`, e.g. `base.switch=my_module:choose`.
        command: the command line that messages extend, without the pairs.

    Raises:
        ConfigError: a pair is not of that form.
    """
    token = _consent.set(Consent(frozenset(map(_pair, pairs)), _flags(command), tuple(command)))
    try:
        yield
    finally:
        _consent.reset(token)


@contextlib.contextmanager
def reading_nested_file() -> Iterator[None]:
    """Context for a file that another file names: the command line's own flags are not about its fields, and
    only pairs of `--confirm` count."""
    token = _consent.set(replace(_consent.get(), flags={}))
    try:
        yield
    finally:
        _consent.reset(token)


def require_typed(path: str, value: str, argv: Sequence[str], file: Path) -> None:
    """Raise `ConsentError` unless `value`, a setting of a program of others that `file` may have given, is on
    that program's command line `argv` as the value of the flag `path`."""
    if value not in _flags(argv).get(path, ()):
        raise ConsentError(
            f"{path} ({value!r}) names code to import, and comes from {file} or another file: give it on the "
            f"command line, --{path}={shlex.quote(value)}"
        )


def with_typed_values(cls: type, data: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The plain settings `data` of the dataclass `cls`, with the sensitive ones that the command line gives
    in place of the file's.

    The command's parser applies the same flags later; here they keep a file's value from being used at all.
    """
    typed = dict(data)
    for name, mark in sensitive_fields(cls).items():
        words = _consent.get().typed(f"{path}.{name}", mark.aliases)
        if words is None or name not in data or mark.kind == "trust":
            continue
        if isinstance(data[name], list):
            typed[name] = list(words)
        elif len(words) == 1:
            typed[name] = int(words[0]) if isinstance(data[name], int) and words[0].isdecimal() else words[0]
    return typed


def confirmations() -> tuple[str, ...]:
    """The pairs that are confirmed, for another process of the user's."""
    return tuple(sorted(f"{path}={value}" for path, value in _consent.get().confirmed))


def take_confirmations(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without `--confirm FIELD=VALUE`, and the pairs. Raises `ConfigError` for a flag without
    one."""
    others: list[str] = []
    pairs: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != CONFIRM:
            others.append(word)
            continue
        pair = value if equals else next(words, "")
        _pair(pair)
        pairs.append(pair)
    return others, pairs


def check_consent(cfg: Any, file: Path, own: bool, path: str = "") -> None:
    """Raise `ConsentError` if `cfg` has sensitive values that the user has not consented to.

    Trust is not among them: it is withdrawn by the reader where the file is not the user's own.

    Args:
        cfg: the settings, a dataclass.
        file: where they were read from.
        own: whether the user's signature covers them.
        path: of `cfg` in larger settings, e.g. `task`.
    """
    if own:
        return
    consent = _consent.get()
    missing = [
        replace(found, values=values)
        for found in sensitive_values(cfg, path)
        if (values := tuple(v for v in found.values if not consent.covers(found.path, v, found.aliases)))
        and found.kind != "trust"
    ]
    if missing:
        raise ConsentError(_message(missing, file, consent.command))


def _message(missing: Sequence[SensitiveValue], file: Path, command: Sequence[str]) -> str:
    facts = [
        f"{found.path} ({', '.join(map(repr, found.values))}), which {DESCRIPTIONS[found.kind]}"
        for found in missing
    ]
    flags = [word for found in missing for v in found.values for word in (CONFIRM, f"{found.path}={v}")]
    fix = shlex.join([*command, *flags]) if command else shlex.join(flags)
    return printable(
        f"{file} is not known to be yours, and its settings include {'; '.join(facts)}. "
        f"If you know what that is and trust it, repeat it on the command line: {fix}"
    )


def _pair(text: str) -> tuple[str, str]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"{CONFIRM} must be FIELD=VALUE, e.g. base.switch=my_module:choose, not {text!r}")
    return path, value


def _flags(argv: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The words after each flag."""
    flags: dict[str, tuple[str, ...]] = {}
    name = None
    for word in argv:
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            name = flag.replace("-", "_")
            flags[name] = (value,) if equals else ()
        elif name is not None:
            flags[name] += (word,)
    return flags
