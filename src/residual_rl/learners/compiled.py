"""The two ways to make a learner's step faster, each behind its own flag: `torch.compile` and CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., object])

log = logging.getLogger(__name__)


def compiled(function: Function, enabled: bool) -> Function:
    """`function` through `torch.compile`, for static shapes. On a CPU it needs a C++ compiler and gains little."""
    return torch.compile(function, dynamic=False) if enabled else function


def cuda_graphed(function: Function, enabled: bool, device: torch.device, is_compiled: bool) -> Function:
    """`function` recorded as a CUDA graph and replayed; it takes tensors of constant shapes and must not wait for the device.

    Without a GPU it runs eagerly, and says so once in the log.
    """
    if not enabled:
        return function
    if device.type != "cuda":
        log.warning("cudagraphs has no effect on %s: the learner runs eagerly", device)
        return function
    from tensordict.nn import CudaGraphModule

    return CudaGraphModule(function, warmup=4 if is_compiled else 2, device=device)  # compilation must be over before the recording
