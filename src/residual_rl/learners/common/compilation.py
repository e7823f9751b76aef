"""The two ways to make a learner's step faster, each behind its own flag: `torch.compile` and CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from residual_rl.errors import MissingDependencyError

log = logging.getLogger(__name__)


def compiled(function: Callable[..., Any], enabled: bool) -> Callable[..., Any]:
    """`function` through `torch.compile`, for static shapes. On a CPU it needs a C++ compiler and gains little."""
    return torch.compile(function, dynamic=False) if enabled else function


def cuda_graphed(
    function: Callable[..., Tensor], enabled: bool, device: torch.device, is_compiled: bool
) -> Callable[..., Tensor]:
    """`function` recorded as a CUDA graph and replayed. It must take tensors of constant shapes and not synchronise with the GPU.

    On other devices it runs eagerly, with a warning. Raises `MissingDependencyError` where tensordict is not installed.
    """
    if not enabled:
        return function
    if device.type != "cuda":
        log.warning("cudagraphs has no effect on %s: the learner runs eagerly", device)
        return function
    try:
        from tensordict.nn import CudaGraphModule
    except ImportError as error:
        fix = "install it with `pip install 'residual-rl[cudagraphs]'`, or leave out --cudagraphs"
        raise MissingDependencyError("tensordict, which records CUDA graphs,", fix) from error

    warmup = 4 if is_compiled else 2  # compilation must be over before the recording
    return cast("Callable[..., Tensor]", CudaGraphModule(cast("Any", function), warmup=warmup, device=device))
