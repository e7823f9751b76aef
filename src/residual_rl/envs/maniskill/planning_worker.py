"""A process that plans episodes. `planning_workers` has it started.

Commands and answers are lines of JSON on two pipes; an episode's arrays follow its line as a NumPy archive. The planner is compiled code
that may crash, or never come back: an alarm of the operating system, which no code has to heed, then ends the process.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import traceback
from typing import Any, BinaryIO

import numpy as np
import torch

from residual_rl.envs.maniskill.motion_planner import NoPlanError, Planner, require_planner
from residual_rl.envs.maniskill.spec import WorldSettings
from residual_rl.errors import ResidualRLError

RUN = f"{__name__}:run"


def serve(commands: BinaryIO, answers: BinaryIO) -> None:
    """Plan the episode of every command until there are no more."""

    def answer(value: dict[str, Any], data: bytes = b"") -> None:
        answers.write(json.dumps({**value, "bytes": len(data)}).encode() + b"\n" + data)
        answers.flush()

    begin = json.loads(commands.readline())
    try:
        require_planner()
        settings = WorldSettings.from_json(begin["settings"])
        planner = Planner(settings, begin["max_episode_steps"], begin["ignore_terminations"])
    except ResidualRLError as error:
        answer({"refused": str(error)})
        return
    answer({"facts": planner.facts.to_json(), "max_episode_steps": planner.max_episode_steps})
    for line in commands:
        seed = json.loads(line)["seed"]
        signal.setitimer(signal.ITIMER_REAL, begin["time_limit"])
        try:
            arrays = planner.episode(seed)
        except NoPlanError as error:
            answer({"lost": str(error)})
        except Exception as error:  # noqa: BLE001 (solutions fail in many ways: that episode is lost)
            traceback.print_exc()
            answer({"lost": " ".join(f"{type(error).__name__}: {error}".split())})
        else:
            signal.setitimer(signal.ITIMER_REAL, 0.0)  # whoever reads it may take their time
            archive = io.BytesIO()
            np.savez(archive, **arrays)  # type: ignore[arg-type]
            answer({}, archive.getvalue())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)


def run(command_fd: int, answer_fd: int) -> int:
    """The whole life of a planning process; returns its exit code."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        with os.fdopen(command_fd, "rb") as commands, os.fdopen(answer_fd, "wb") as answers, torch.no_grad():
            serve(commands, answers)
    except BrokenPipeError:  # whoever asked is gone
        return 0
    except BaseException:  # noqa: BLE001 (these are the last words)
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0
