"""Shared parts of the subcommands of `demos`."""

from __future__ import annotations

from collections.abc import Sequence

from residual_rl.cli.flags import HELP, require_target
from residual_rl.errors import ConfigError


def require_demos_file(argv: Sequence[str], command: str, purpose: str) -> tuple[str, list[str]]:
    """The first argument and the rest; see `require_target`."""
    if HELP.isdisjoint(argv) and (not argv or argv[0].startswith("-")):
        raise ConfigError(
            f"demos {command} needs a file of demonstrations: residual-rl demos {command} FILE [options]"
        )
    return require_target(argv, f"demos {command}", "FILE", purpose)


YES_NO = {True: "yes", False: "no", None: "–"}
