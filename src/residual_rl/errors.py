"""Errors that a user can fix. Each message is one line that names the problem and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ResidualRLError(Exception):
    """Base class of errors whose message is meant for the user.

    The command line prints the message without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class ConfigError(ResidualRLError, ValueError):
    """A setting is invalid, or two settings are incompatible."""


class UnknownNameError(ResidualRLError, KeyError):
    """A name does not exist in a registry, folder or model. The message lists the known names and the closest
    matches."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}{hint}; known: {', '.join(known) or 'none'}")
        self.name = name

    def __str__(self) -> str:  # KeyError would print the message's repr
        return str(self.args[0])


class ModelError(ResidualRLError, ValueError):
    """A robot or scene description lacks a part that the task needs."""


class CheckpointError(ResidualRLError):
    """A file is missing, truncated, of another kind, or of an unsupported format version."""


class BasePolicyError(ResidualRLError):
    """A base policy raised an exception, or its output does not match its declaration."""


class NonFiniteError(ResidualRLError):
    """NaN or infinity in an observation, action, reward, gradient or physics state."""

    exit_code = 3

    def __init__(self, message: str, dump: dict[str, Any] | None = None):
        super().__init__(message)
        self.dump = dump or {}
        """The states before the step, as tensors by name, for debugging."""


class ArmError(ResidualRLError):
    """The connection to an arm is lost, or its answer is late, stale or malformed."""

    exit_code = 4


class MissingDependencyError(ResidualRLError, ImportError):
    """An optional library, or a system library such as OpenGL, is not installed."""

    def __init__(self, what: str, fix: str):
        super().__init__(f"{what} is not available; {fix}")


class LearnerError(ResidualRLError):
    """The process of the learner has ended, or does not answer."""
