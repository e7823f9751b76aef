"""Checks that any dataclass of settings needs."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, Literal

from residual_rl.errors import ConfigError


def check_fields(cfg: Any) -> None:
    """Raise `ConfigError` where a field of a `Literal` type holds none of its values, or a number is NaN or infinite."""
    hints = typing.get_type_hints(type(cfg))
    for field in dataclasses.fields(cfg):
        value, hint = getattr(cfg, field.name), hints[field.name]
        if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
            raise ConfigError(f"{field.name} must be one of {', '.join(map(str, typing.get_args(hint)))}, not {value!r}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{field.name} must be finite, not {value}")
