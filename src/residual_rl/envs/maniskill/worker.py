"""A process that steps several ManiSkill worlds of the CPU simulation. `WorkerWorlds` has it started.

What to make comes as a line of JSON on a pipe, and answers go as lines on another; commands come as numbers by an eventfd; arrays are in
shared memory. The process ends when the pipe does: with whoever started it.
"""

from __future__ import annotations

import json
import os
import select
import sys
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.envs.maniskill.cpu_patches import collect_garbage_seldom, read_poses_at_once
from residual_rl.envs.maniskill.shared import SharedArrays, layout
from residual_rl.envs.maniskill.sim_env import World
from residual_rl.envs.maniskill.spec import WorldSettings
from residual_rl.errors import ResidualRLError

COMMANDS = ("share", "reset", "step", "states")
"""By their numbers, from 1."""


class Worker:
    """The worlds `first` to `first + count - 1` of a vec_env."""

    def __init__(self, settings: WorldSettings, first: int, count: int):
        if not settings.draws:  # images take memory that should not wait
            collect_garbage_seldom()
        self.rows = range(first, first + count)
        self.worlds = [World(settings) for _ in self.rows]
        self.facts = self.worlds[0].facts
        self.arrays: list[dict[str, NDArray[Any]]]
        """Of each world, [1, …]."""
        self._here = torch.zeros(1, dtype=torch.int64)

    def share(self, fd: int, num_envs: int) -> None:
        """Take the memory for all worlds of the vec_env, and show the first observations."""
        shared = SharedArrays(fd, layout(self.facts), num_envs)
        self.arrays = [shared.of_world(row) for row in self.rows]
        for arrays, world in zip(self.arrays, self.worlds, strict=True):
            _show(arrays, world.observations(), "obs/")

    def reset(self) -> None:
        """Begin new episodes in the worlds that are told to go."""
        for arrays, world in zip(self.arrays, self.worlds, strict=True):
            if arrays["go"]:
                np.random.seed(int(arrays["seed"][0]))  # noqa: NPY002 (some tasks draw from the global generator)
                world.reset(self._here, torch.from_numpy(arrays["seed"]))
                _show(arrays, world.observations(), "obs/")

    def step(self) -> None:
        """One step of the worlds that are told to go."""
        for arrays, world in zip(self.arrays, self.worlds, strict=True):
            if arrays["go"]:
                step = world.step(torch.from_numpy(arrays["action"].copy()))
                _show(arrays, {"reward": step.reward, "success": step.success, "fail": step.fail})
                _show(arrays, step.metrics, "metrics/")
                _show(arrays, step.obs, "obs/")

    def states(self) -> None:
        """Show the simulator's states."""
        for arrays, world in zip(self.arrays, self.worlds, strict=True):
            _show(arrays, {"state": world.states()})


def _show(arrays: dict[str, NDArray[Any]], values: dict[str, Tensor], prefix: str = "") -> None:
    """Write `values`, [1, …] each, to the arrays of a world, whose names begin with `prefix`."""
    for name, value in values.items():
        arrays[prefix + name][...] = value.numpy()


def serve(settings: BinaryIO, commands: int, answers: BinaryIO, memory_fd: int) -> None:
    """Answer every command, until the pipe of the settings is closed."""

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value).encode() + b"\n")
        answers.flush()

    begin = json.loads(settings.readline())
    try:
        worker = Worker(WorldSettings.from_json(begin["settings"]), begin["first"], begin["count"])
    except ResidualRLError as error:
        answer({"refused": str(error)})
        return
    answer({"facts": worker.facts.to_json()})
    calls: dict[str, Callable[[], None]] = {
        "share": lambda: worker.share(memory_fd, begin["num_envs"]),
        "reset": worker.reset,
        "step": worker.step,
        "states": worker.states,
    }
    events = select.poll()
    events.register(commands, select.POLLIN)
    events.register(settings.fileno(), 0)  # its end alone
    while all(fd == commands for fd, _ in events.poll()):
        calls[COMMANDS[os.eventfd_read(commands) - 1]]()
        answers.write(b"{}\n")
        answers.flush()


def run(settings_fd: int, answer_fd: int, memory_fd: int, commands: int) -> int:
    """The whole life of a worker process; returns its exit code."""
    torch.set_num_threads(1)
    read_poses_at_once()
    try:
        with os.fdopen(settings_fd, "rb") as settings, os.fdopen(answer_fd, "wb") as answers, torch.inference_mode():
            serve(settings, commands, answers, memory_fd)
    except BrokenPipeError:  # whoever asked is gone
        return 0
    except BaseException:  # noqa: BLE001 (whatever a task raises: these are the last words)
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0
