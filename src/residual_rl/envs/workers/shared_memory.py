"""Named arrays [B, …] in memory that a pool shares with its workers.

The memory is an anonymous file (`memfd_create`), which disappears when the last process that has it open
ends. `multiprocessing.shared_memory.SharedMemory` has three disadvantages here:

- Its segments are in /dev/shm, which containers limit to 64 MiB by default. Writing beyond the limit kills
the
  process with SIGBUS. The images of 64 envs with two cameras of 320 x 240 pixels take 28 MiB.
- Its segments have names, so a tracker process must delete them if a process is killed.
- Before Python 3.13, each worker that attaches to a segment starts its own tracker, which deletes the segment
  when the worker ends.
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

from residual_rl.errors import ConfigError
from residual_rl.utils.text import one_line

_ALIGNMENT = 64
"""Alignment of the arrays [bytes]: a cache line, which is enough for any dtype."""


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of an array of one env."""

    shape: tuple[int, ...]
    dtype: str
    """NumPy's name of the dtype, such as `float32`."""


class SharedArrays:
    """Arrays in the memory of a file.

    Args:
        fd: descriptor of a file from `os.memfd_create`.
        specs: the arrays of one env by name.
        num_envs: B.
        start: size of the file so far, behind which the arrays begin [bytes].

    Raises:
        ConfigError: an array is of something other than numbers and booleans. Python objects would be
            addresses that another process writes.
    """

    def __init__(self, fd: int, specs: Mapping[str, ArraySpec], num_envs: int, start: int = 0):
        self.layout: dict[str, tuple[tuple[int, ...], str, int]] = {}
        """Shape [B, …], dtype and offset [bytes] of each array by name."""
        self.size = start
        """Size of the file [bytes]."""
        for name, spec in specs.items():
            if np.dtype(spec.dtype).kind not in "biuf":
                raise ConfigError(f"{one_line(name)} has dtype {spec.dtype}, expected numbers or booleans")
            shape = (num_envs, *spec.shape)
            self.layout[name] = (shape, spec.dtype, self.size)
            num_bytes = math.prod(shape) * np.dtype(spec.dtype).itemsize
            self.size += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        os.ftruncate(fd, self.size)
        memory = mmap.mmap(fd, self.size)  # the arrays keep a reference to it
        self.arrays: dict[str, NDArray[Any]] = {
            name: np.ndarray(shape, dtype, memory, offset)
            for name, (shape, dtype, offset) in self.layout.items()
        }
