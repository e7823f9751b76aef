"""The two ways to make a learner's step faster, each behind its own flag: `torch.compile` and CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def compiled(function: Callable[..., Any], enabled: bool) -> Callable[..., Any]:
    """`function` through `torch.compile`, for static shapes. On a CPU it needs a C++ compiler and gains little."""
    return torch.compile(function, dynamic=False) if enabled else function


def cuda_graphed(function: Callable[..., Tensor], enabled: bool, device: torch.device, is_compiled: bool) -> Callable[..., Tensor]:
    """`function` recorded as a CUDA graph and replayed; it takes tensors of constant shapes and must not wait for the device.

    Without a GPU it runs eagerly, and says so once in the log.
    """
    if not enabled:
        return function
    if device.type != "cuda":
        log.warning("cudagraphs has no effect on %s: the learner runs eagerly", device)
        return function
    from tensordict.nn import CudaGraphModule

    warmup = 4 if is_compiled else 2  # compilation must be over before the recording
    return cast("Callable[..., Tensor]", CudaGraphModule(cast("Any", function), warmup=warmup, device=device))
