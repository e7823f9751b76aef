"""Shared code of the clients of policy servers: retries, reading messages, checks of arrays."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from residual_rl.errors import BasePolicyError
from residual_rl.remote.wire import MAX_MESSAGE_BYTES, WireError, unpack

T = TypeVar("T")

ACTIONS, UNCERTAINTY = "residual_rl.actions", "residual_rl.uncertainty"
"""Keys of the normalised actions and their uncertainty in a reply of `residual-rl serve`. A client
requests both by the first key."""
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 5.0
_log = logging.getLogger(__name__)


class ServerUnavailable(Exception):  # noqa: N818 (`retry` catches it)
    """A server did not answer; a retry may succeed."""


def retry(attempt: Callable[[], T], server: str, window: float) -> T:
    """The result of `attempt`, repeated with exponential back-off while it raises `ServerUnavailable`.

    Logs a warning when it starts to wait. Raises `BasePolicyError` after `window` [s].
    """
    began, delay = None, _FIRST_DELAY
    while True:
        try:
            return attempt()
        except ServerUnavailable as gone:
            # The window starts with the first failure.
            now = time.monotonic()
            if began is None:
                began = now
                if window > 0:
                    _log.warning("%s: %s; waiting up to %g s for it", server, gone, window)
            left = began + window - now
            if left <= 0:
                waited = f", nor in the {window:g} s after that" if window > 0 else ""
                raise BasePolicyError(
                    f"{server}: {gone}{waited}; start it, or raise --base.timeout or --base.reconnect if it"
                    " is only slow"
                ) from gone
            # Wait twice as long each time.
            time.sleep(min(delay, left))
            delay = min(2 * delay, _LONGEST_DELAY)


def read_message(data: bytes, server: str, expected: str) -> Any:
    """The decoded message of a server. Raises `BasePolicyError` where it is invalid or too large."""
    try:
        return unpack(data)[0]
    except WireError as error:
        raise BasePolicyError(f"{server} sent {error}; expected {expected}") from error


def too_large(server: str) -> BasePolicyError:
    """The error for a message that exceeds the size limit."""
    return BasePolicyError(
        f"{server} sent a message of more than {MAX_MESSAGE_BYTES:,} bytes: no policy's reply is that large"
    )


def numbers(value: Any, name: str, shapes: Collection[tuple[int, ...]], server: str) -> Tensor:
    """`value` as a float64 tensor.

    Raises `BasePolicyError` unless it is an array of finite floats with one of the `shapes` (-1: any size).
    """
    expected = f"expected floats of shape {' or '.join(map(_shape_text, shapes))}"
    if not isinstance(value, np.ndarray):
        raise BasePolicyError(f"{server} gave {name} as {type(value).__name__}; {expected}")
    if value.dtype.kind != "f":
        raise BasePolicyError(f"{server} gave {name} of dtype {value.dtype}; {expected}")
    if not any(
        len(value.shape) == len(s) and all(n in (-1, m) for n, m in zip(s, value.shape, strict=True))
        for s in shapes
    ):
        raise BasePolicyError(f"{server} gave {name} of shape {value.shape}; {expected}")
    if not np.isfinite(value).all():
        raise BasePolicyError(f"{server} gave {name} with NaN or infinity; expected finite numbers")
    return torch.from_numpy(value.astype(np.float64))


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"({', '.join('any' if n < 0 else str(n) for n in shape)}{',' * (len(shape) == 1)})"
