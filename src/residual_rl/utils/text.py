"""Parsing and shortening of short texts."""

from __future__ import annotations

from collections.abc import Iterable

from residual_rl.errors import ConfigError


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


def one_line(text: object, limit: int = 300) -> str:
    """A message, such as an exception's, on one line and cut to `limit` characters; of a traceback, the last
    line."""
    lines = [" ".join(line.split()) for line in str(text).splitlines() if line.strip()]
    if lines and lines[0].startswith("Traceback"):
        lines = lines[-1:]
    joined = " ".join(lines)
    return joined if len(joined) <= limit else f"{joined[:limit]}…"


def printable(text: str) -> str:
    """`text` with control characters, such as those of terminals' escape sequences, written as `\\x1b`; line
    breaks and tabs too."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
