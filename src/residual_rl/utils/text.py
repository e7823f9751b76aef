"""Parsing and shortening of short texts, and commands for messages."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from residual_rl.errors import ConfigError

_MOST = 10_000
"""Characters at each end of a text that `one_line` reads."""


def parse_pairs(pairs: Iterable[str], setting: str) -> dict[str, str]:
    """`{key: name}` of texts `name=key`, or `name` where both are the same."""
    parsed: dict[str, str] = {}
    for pair in pairs:
        name, _, key = pair.partition("=")
        key = key or name
        if not name or key in parsed:
            raise ConfigError(f"{setting} {pair!r}: expected ENV_NAME=SERVER_KEY, each key once")
        parsed[key] = name
    return parsed


def shell_command(*words: object) -> str:
    """A command of `residual-rl` for a message, quoted so that it can be pasted into a shell."""
    return shlex.join(["residual-rl", *map(_word, words)])


def _word(word: object) -> str:
    """A word of a command; paths such as `-x` are not options."""
    return f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)


def one_line(text: object, limit: int = 300) -> str:
    """A message, such as an exception's, on one line and cut to `limit` characters; of a traceback, the last
    line. Control characters are escaped, as in `printable`."""
    whole = str(text)
    if len(whole) > 2 * _MOST:  # the message of a traceback is at its end
        whole = f"{whole[:_MOST]}\n{whole[-_MOST:]}"
    lines = [" ".join(line.split()) for line in whole.splitlines() if line.strip()]
    if lines and lines[0].startswith("Traceback"):
        lines = lines[-1:]
    joined = printable(" ".join(lines))
    return joined if len(joined) <= limit else f"{joined[:limit]}…"


def listed(names: Iterable[object], most: int = 10) -> str:
    """Names from another machine, such as the keys of its message, in one line of bounded length; "nothing"
    without any."""
    shown = [one_line(name, 40) for name in islice(names, most + 1)]
    return f"{', '.join(shown[:most])}, …" if len(shown) > most else ", ".join(shown) or "nothing"


def printable(text: str) -> str:
    """`text` with control characters, such as those of terminals' escape sequences, written as `\\x1b`; line
    breaks and tabs too."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
