"""A process that steps several ManiSkill worlds of the CPU simulation. `WorkerWorlds` has it started.

Commands and answers are lines of JSON on two pipes; arrays are in shared memory. It ends when its commands do: with whoever started it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch

from residual_rl.envs.maniskill.settings import WorldSettings
from residual_rl.envs.maniskill.shared import SharedArrays, layout
from residual_rl.envs.maniskill.world import World
from residual_rl.errors import ResidualRLError


class Worker:
    """The worlds `first` to `first + count - 1` of a vec_env."""

    def __init__(self, settings: WorldSettings, first: int, count: int):
        self.rows = range(first, first + count)
        self.worlds = [World(settings) for _ in self.rows]
        self.facts = self.worlds[0].facts
        self.shared: SharedArrays
        self._here = torch.zeros(1, dtype=torch.int64)

    def share(self, fd: int, num_envs: int) -> None:
        """Take the memory for all worlds of the vec_env, and show the first observations."""
        self.shared = SharedArrays(fd, layout(self.facts), num_envs)
        for row, world in zip(self.rows, self.worlds, strict=True):
            self._show(row, world)

    def reset(self) -> None:
        """Begin new episodes in the worlds that are told to go."""
        for row, world in zip(self.rows, self.worlds, strict=True):
            if self.shared["go"][row]:
                seed = self.shared["seed"][row : row + 1]
                np.random.seed(int(seed))  # noqa: NPY002 (some tasks draw from the global generator)
                world.reset(self._here, seed)
                self._show(row, world)

    def step(self) -> None:
        """One step of the worlds that are told to go."""
        for row, world in zip(self.rows, self.worlds, strict=True):
            if self.shared["go"][row]:
                step = world.step(self.shared["action"][row : row + 1].clone())
                for name, value in (("reward", step.reward), ("success", step.success), ("fail", step.fail)):
                    self.shared[name][row] = value[0]
                for name, value in step.metrics.items():
                    self.shared[f"metrics/{name}"][row] = value[0]
                self._show(row, world)

    def states(self) -> None:
        """Show the simulator's states."""
        for row, world in zip(self.rows, self.worlds, strict=True):
            self.shared["state"][row] = world.states()[0]

    def _show(self, row: int, world: World) -> None:
        for name, value in world.observations().items():
            self.shared[f"obs/{name}"][row] = value[0]


def serve(commands: BinaryIO, answers: BinaryIO, memory_fd: int) -> None:
    """Answer every command until there are no more."""

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value).encode() + b"\n")
        answers.flush()

    begin = json.loads(commands.readline())
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
    for line in commands:
        calls[line.decode().strip()]()
        answers.write(b"{}\n")
        answers.flush()


def run(command_fd: int, answer_fd: int, memory_fd: int) -> int:
    """The whole life of a worker process; returns its exit code."""
    torch.set_num_threads(1)
    try:
        with os.fdopen(command_fd, "rb") as commands, os.fdopen(answer_fd, "wb") as answers, torch.inference_mode():
            serve(commands, answers, memory_fd)
    except BrokenPipeError:  # whoever asked is gone
        return 0
    except BaseException:  # noqa: BLE001 (whatever a task raises: these are the last words)
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0
