"""What a vec_env and its worker processes share: named arrays of all worlds, in memory that vanishes with the processes."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.envs.maniskill.spec import Array, Facts

_ALIGNMENT = 64
"""Bytes; a cache line, and more than any dtype needs."""


def layout(facts: Facts) -> dict[str, Array]:
    """The arrays of one world: its action and command, what a step gives, and the observation, under `obs/…` and `metrics/…`."""
    arrays = {
        "action": Array((len(facts.action_unit),), "float32"),
        "go": Array((), "bool"),
        "seed": Array((), "int64"),
        "reward": Array((), "float32"),
        "success": Array((), "bool"),
        "fail": Array((), "bool"),
        "state": Array((facts.state_size,), "float64"),
    }
    arrays |= {f"metrics/{name}": Array((), "float32") for name in facts.metrics}
    return arrays | {f"obs/{name}": array for name, array in facts.observations.items()}


class SharedArrays:
    """Tensors [B, …] by name, on the memory behind a file descriptor.

    Args:
        fd: from `os.memfd_create`.
        arrays: of one world.
        num_envs: B.
    """

    def __init__(self, fd: int, arrays: Mapping[str, Array], num_envs: int):
        places, size = {}, 0
        for name, array in arrays.items():
            dtype = getattr(torch, array.dtype)
            count = num_envs * math.prod(array.shape)
            places[name] = (size, dtype, count, (num_envs, *array.shape))
            size += -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        os.ftruncate(fd, size)
        memory = mmap.mmap(fd, size)  # the tensors keep it
        self.tensors: dict[str, Tensor] = {
            name: torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(shape)
            for name, (offset, dtype, count, shape) in places.items()
        }

        self._groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            prefix, _, own = name.rpartition("/")
            self._groups.setdefault(prefix, {})[own] = tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Copies of the arrays `prefix/…`, by their own names."""
        return {name: value.clone() for name, value in self._groups.get(prefix, {}).items()}

    def of_world(self, row: int) -> dict[str, NDArray[Any]]:
        """The arrays [1, …] of one world, for a worker: NumPy writes a few numbers in a fifth of the time that torch takes."""
        return {name: tensor[row : row + 1].numpy() for name, tensor in self.tensors.items()}
