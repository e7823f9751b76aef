"""Named arrays [B, …] in memory that a pool shares with its workers.

The memory is an anonymous file (`memfd_create`), not a `multiprocessing.shared_memory.SharedMemory`, which is
worse here in three ways. Its segments lie in /dev/shm, which containers limit to 64 MiB by default: writing
beyond kills the process with SIGBUS, and the images of 64 envs with two cameras of 320 x 240 pixels take 28
MiB. They have names, so that something must delete them when a process is killed: a tracker process. And
before Python 3.13 each worker that attaches starts a tracker of its own, which deletes the segment when that
worker ends. An anonymous file ends with the last process that holds it, whatever kills that.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 64
"""Bytes: a cache line, and more than any dtype needs."""


@dataclass(frozen=True)
class ArraySpec:
    """A named array of one env."""

    shape: tuple[int, ...]
    dtype: str
    """NumPy's name of it, such as `float32`."""


class SharedArrays:
    """Arrays on the memory of a file.

    Args:
        fd: an empty file, from `os.memfd_create`.
        specs: the arrays of one env, by name.
        num_envs: B.
    """

    def __init__(self, fd: int, specs: Mapping[str, ArraySpec], num_envs: int):
        self.layout: dict[str, tuple[tuple[int, ...], str, int]] = {}
        """Shape [B, …], dtype and offset [bytes] of each array, by name."""
        self.size = 0
        """Bytes of all arrays."""
        for name, spec in specs.items():
            shape = (num_envs, *spec.shape)
            self.layout[name] = (shape, spec.dtype, self.size)
            num_bytes = math.prod(shape) * np.dtype(spec.dtype).itemsize
            self.size += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        os.ftruncate(fd, self.size)
        memory = mmap.mmap(fd, self.size)  # the arrays keep it alive
        self.arrays: dict[str, NDArray[Any]] = {
            name: np.ndarray(shape, dtype, memory, offset)
            for name, (shape, dtype, offset) in self.layout.items()
        }
