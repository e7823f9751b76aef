"""Failures that a user can mend: each is one clear line that names the thing and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ResidualRLError(Exception):
    """A failure with a message meant for the user: the command line prints it alone and exits with `exit_code`."""

    exit_code = 2


class ConfigError(ResidualRLError, ValueError):
    """A setting is wrong, or two settings do not fit together."""


class UnknownNameError(ResidualRLError, KeyError):
    """A name that no registry, folder or model holds; the message lists what exists, the nearest first."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}{hint}; known: {', '.join(known) or 'none'}")

    def __str__(self) -> str:  # KeyError would print the message's repr
        return str(self.args[0])


class ModelError(ResidualRLError, ValueError):
    """A robot or scene description does not have what the task needs."""


class CheckpointError(ResidualRLError):
    """A file is missing, truncated, foreign, or of a format version that this release does not know."""


class BasePolicyError(ResidualRLError):
    """A base policy raised, or gave something other than what it declared."""


class NonFiniteError(ResidualRLError):
    """NaN or infinity in an observation, action, reward, gradient or physics state."""

    exit_code = 3

    def __init__(self, message: str, dump: dict[str, Any] | None = None):
        super().__init__(message)
        self.dump = dump or {}
        """Tensors by name: the states before the step, for a post-mortem."""


class MissingDependencyError(ResidualRLError, ImportError):
    """An optional library, or a system library such as OpenGL, is not installed."""

    def __init__(self, what: str, mend: str):
        super().__init__(f"{what} is not available; {mend}")
