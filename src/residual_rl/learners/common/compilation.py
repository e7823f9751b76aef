"""Optional acceleration of a learner's steps: `torch.compile` and CUDA graphs, each with its own flag."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from residual_rl.errors import MissingDependencyError

log = logging.getLogger(__name__)


def compiled(function: Callable[..., Any], enabled: bool) -> Callable[..., Any]:
    """Compile `function` for static shapes if `enabled`.

    On a CPU, compilation gains little. Raises `MissingDependencyError` without a C++ compiler, which torch
    would only look for in the first call.
    """
    if not enabled:
        return function
    # the one that torch looks for
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        fix = "install one or name it in the environment variable CXX, or leave out --compile"
        raise MissingDependencyError(f"the C++ compiler {compiler}", fix)
    return torch.compile(function, dynamic=False)


def cuda_graphed(
    function: Callable[..., Tensor], enabled: bool, device: torch.device, is_compiled: bool
) -> Callable[..., Tensor]:
    """Record `function` as a CUDA graph and replay it, if `enabled`.

    The function must take tensors of constant shapes and must not synchronise with the device. On other
    devices than CUDA it runs eagerly, with a warning in the log. Raises `MissingDependencyError` if
    tensordict is not installed.
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

    warmup = 4 if is_compiled else 2  # compilation must finish before the recording
    return cast("Callable[..., Tensor]", CudaGraphModule(cast("Any", function), warmup=warmup, device=device))
