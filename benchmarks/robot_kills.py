"""Kill a training on the simulated arm again and again, and resume it: what is lost?

    python benchmarks/robot_kills.py --kills 50

Each session is forked from this process, which has imported everything, and is killed by SIGKILL after a
random time. Then the newest checkpoint must be intact, and have every episode that the session had reported
as finished: at most the current one is lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from residual_rl.config import TrainCfg, replace_fields
from residual_rl.deployment.arm_cfg import GuardCfg
from residual_rl.deployment.learning_cfg import RobotCfg
from residual_rl.deployment.robot_runner import RobotRunner
from residual_rl.deployment.training_arm import make_training_arm
from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.runs.run_folder import RunFolder

SETTINGS = {
    "num_envs": 1,
    "num_threads": 1,
    "total_timesteps": 1_000_000,
    "max_episode_steps": 12,
    "hidden_sizes": (16, 16),
    "batch_size": 16,
    "buffer_size": 4096,
    "learning_starts": 24,
    "actor_starts": 24,
    "warmup_steps": 24,
    "demo_share": 0.25,
}
ROBOT = RobotCfg(sim=True, real_time=False, operator="none", reset="automatic", best_window=2)
LONGEST = 1.0
"""Longest time from the first episode of a session to its kill [s]."""


class LostError(Exception):
    """A kill cost more than the current episode."""


def kill_again_and_again(folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Train in `folder`, with `kills` kills. Returns counts. Raises `LostError` with what was lost."""
    draw = random.Random(seed)
    result = {"kills": 0, "episodes": 0, "current_episodes_lost": 0}
    for _ in range(kills):
        finished, began = _killed_session(folder, draw.uniform(0.0, LONGEST))
        latest = CheckpointFolder(folder / "checkpoints").latest()
        saved = 0 if latest is None else latest[1]["progress"]["episodes"]
        if saved < finished:
            raise LostError(f"{finished} episodes were finished, but the newest checkpoint has {saved}")
        if latest is not None:
            _check(latest)
        result["kills"] += 1
        result["episodes"] = saved
        result["current_episodes_lost"] += began > saved
    return result


def _check(latest: tuple[int, dict[str, Any]]) -> None:
    """The parts of a checkpoint must fit together."""
    step, state = latest
    rows = state["learner"]["buffer"]["num_written"]
    if not step == state["progress"]["step"] == rows:
        raise LostError(
            f"the checkpoint of step {step} has {rows} rows and {state['progress']['step']} steps"
        )


def _killed_session(folder: Path, seconds: float) -> tuple[int, int]:
    """Fork a session and kill it after some time. Returns the episodes that it had finished and begun."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _train(folder, lambda text: os.write(writing, text))
    os.close(writing)
    select.select([reading], [], [], 120.0)  # until its first episode begins
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as pipe:
        lines = pipe.read().decode().split("\n")[:-1]
    counts = {kind: [int(line[1:]) for line in lines if line[0] == kind] for kind in "bf"}
    return max(counts["f"], default=0), max(counts["b"], default=0)


def _train(folder: Path, report: Callable[[bytes], Any]) -> None:
    """A session, which reports `b3` when episode 3 begins, and `f3` when it is saved."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    run = RunFolder(folder)
    cfg = replace_fields(TrainCfg.default("so101-paper", "jacobian", "sac"), SETTINGS)
    resume = run.config_file.is_file()
    if resume:
        run.resume(command=["robot_kills"])
    else:
        run.start({**cfg.to_dict(), "robot": {}}, command=["robot_kills"])
    runner = RobotRunner(cfg, ROBOT, run, resume, arm=make_training_arm(cfg, ROBOT, GuardCfg()))
    runner.start()
    begin, end = runner._begin_episode, runner._end_episode

    def begin_episode(*args: Any) -> None:
        begin(*args)
        report(b"b%d\n" % (runner.progress.episodes + 1))

    def end_episode(*args: Any) -> None:
        end(*args)
        runner.learning.wait()
        report(b"f%d\n" % runner.progress.episodes)

    runner._begin_episode, runner._end_episode = begin_episode, end_episode  # type: ignore[method-assign]
    runner.learn()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = kill_again_and_again(Path(folder) / "run", args.kills, args.seed)
    print(json.dumps({**result, "seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
