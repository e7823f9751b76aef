"""Trainings on a simulated robot that take a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from residual_rl.config import TrainCfg, replace_fields
from residual_rl.deployment.arm_cfg import GuardCfg
from residual_rl.deployment.learning_cfg import RobotCfg
from residual_rl.deployment.operators import NoOperator, Operator, Signals
from residual_rl.deployment.robot_runner import RobotRunner
from residual_rl.deployment.training_arm import make_training_arm
from residual_rl.runs.run_folder import RunFolder
from residual_rl.types import Obs

TINY: dict[str, Any] = {
    "num_envs": 1,
    "num_threads": 1,
    "total_timesteps": 60,
    "hidden_sizes": (8, 8),
    "max_episode_steps": 20,
    "tolerance": 0.08,
    "success_hold_steps": 5,
    "batch_size": 8,
    "buffer_size": 256,
    "warmup_steps": 8,
    "learning_starts": 8,
    "actor_starts": 16,
    "demo_share": 0.25,
}
SIMULATED: dict[str, Any] = {"sim": True, "real_time": False, "operator": "none", "reset": "automatic"}
SIMULATED |= {"best_window": 2}


class Script(NoOperator):
    """A person who sends given signals at given steps, counted over all episodes."""

    def __init__(self, signals: dict[int, Signals]):
        self._signals = signals
        self.steps = 0
        self.prepared = 0

    def signals(self, obs: Obs) -> Signals:
        self.steps += 1
        return self._signals.get(self.steps - 1, Signals())

    def prepare(self, should_stop: Any = None) -> None:
        self.prepared += 1


def pushes(*steps: int) -> Script:
    """A person who commands an action of 1 in the first joint at these steps."""
    action = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    return Script(dict.fromkeys(steps, Signals(action=action)))


def config(learner: str = "sac", **settings: Any) -> TrainCfg:
    cfg = TrainCfg.default("so101-paper", "jacobian", learner)
    return replace_fields(cfg, {**TINY, **settings})


def make_runner(
    path: Path,
    operator: Operator | None = None,
    resume: bool = False,
    cfg: TrainCfg | None = None,
    on_arm: bool = False,
    **robot: Any,
) -> RobotRunner:
    """A runner whose folder is started or resumed; close it with `runner.folder.close()`."""
    cfg = config() if cfg is None else cfg
    folder = RunFolder(path)
    if resume:
        folder.resume()
    else:
        folder.start({**cfg.to_dict(), "robot": {}})
    session = RobotCfg(**{**SIMULATED, **robot})
    guard = GuardCfg(max_latency=5.0, stale_after=5.0)  # for a test machine that is busy
    arm = make_training_arm(cfg, session, guard) if on_arm else None
    runner = RobotRunner(cfg, session, folder, resume, operator, arm)
    runner.start()
    return runner


def train_robot(path: Path, *args: Any, **settings: Any) -> tuple[RobotRunner, dict[str, Any]]:
    """Train to the end; the runner and its summary."""
    runner = make_runner(path, *args, **settings)
    try:
        return runner, runner.learn()
    finally:
        runner.folder.close()
