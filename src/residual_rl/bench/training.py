"""Speed of training compared with Stable-Baselines3's PPO on the same task, base policy and networks."""

from __future__ import annotations

import dataclasses
import functools
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from residual_rl.config import TrainCfg, replace_fields
from residual_rl.errors import MissingDependencyError
from residual_rl.gymnasium_env import GymnasiumEnv
from residual_rl.runner import Runner
from residual_rl.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from stable_baselines3 import PPO

SETTINGS = {
    "num_envs": 32,
    "num_steps": 64,
    "minibatch_size": 256,
    "num_epochs": 8,
    "hidden_sizes": (128, 128),
    "activation": "tanh",
    "target_kl": None,
}
"""Settings of both sides: 2,048 env steps and 8 · 2,048 gradient samples per update."""
SB3_ENVS = 8
"""Subprocesses of Stable-Baselines3."""


@dataclass
class TrainingSpeeds:
    """Env steps per second of wall time, updates included, one value per turn."""

    ours: list[float] = field(default_factory=list)
    sb3: list[float] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    """Shares of simulation, base policy and learner in our wall time."""
    peak_memory: float = 0.0
    """Peak memory of this process after our first updates, before Stable-Baselines3 is loaded [bytes]."""
    act_latency: float = 0.0
    """Median time of a query of the residual policy for one env [s]."""
    base_latency: float = 0.0
    """The same for the base policy [s]."""
    missing: str | None = None
    """Reason why Stable-Baselines3 was not measured, if any."""

    @property
    def ratios(self) -> list[float]:
        """Ours ÷ Stable-Baselines3 for each turn; empty without it."""
        return [ours / sb3 for ours, sb3 in zip(self.ours, self.sb3, strict=False)]


def compare_training(cfg: TrainCfg, repeats: int) -> TrainingSpeeds:
    """Alternate between the two, with one update of each per turn, after a warm-up."""
    cfg = replace_fields(cfg, dict(SETTINGS))
    runner = Runner(cfg, RunFolder(Path("unused")))  # only `learn` writes to the folder

    # Warm up, and measure the memory before Stable-Baselines3 is loaded.
    speeds = TrainingSpeeds()
    _iterate(runner)
    speeds.peak_memory = _peak_memory()
    try:
        sb3 = _make_sb3(cfg)
    except MissingDependencyError as error:
        speeds.missing, sb3 = str(error), None

    # Alternate between the two; the first turn of Stable-Baselines3 warms it up.
    before = _parts(runner)
    steps = runner.learner.num_steps * runner.env.num_envs
    for turn in range(repeats + (sb3 is not None)):
        if turn or sb3 is None:
            speeds.ours.append(steps / _seconds(lambda: _iterate(runner)))
        if sb3 is not None:
            rate = steps / _seconds(lambda: sb3.learn(steps, reset_num_timesteps=False))
            if turn:
                speeds.sb3.append(rate)

    # Split our time into its parts.
    spent = {name: value - before[name] for name, value in _parts(runner).items()}
    speeds.shares = {name: value / sum(spent.values()) for name, value in spent.items()}
    if sb3 is not None and sb3.env is not None:
        sb3.env.close()
    speeds.act_latency, speeds.base_latency = _latencies(runner)
    return speeds


class _UntilSolved(Runner):
    """A training that ends after an evaluation with 95 % success."""

    @property
    def _finished(self) -> bool:
        best = self.progress.best
        return super()._finished or (self.progress.step > 0 and best is not None and best[0] >= 0.95)


def time_to_95(cfg: TrainCfg, max_steps: int) -> float | None:
    """Wall time of a training until an evaluation with 95 % success [s], with set-up and evaluations, without
    imports; None if `max_steps` env steps do not suffice."""
    cfg = replace_fields(cfg, {"total_timesteps": max_steps, "confirm_episodes": 0})
    with tempfile.TemporaryDirectory() as path, RunFolder(path).start(cfg.to_dict()) as folder:
        runner = _UntilSolved(cfg, folder)
        seconds: float | None = runner.learn()["time_to_95"]
        runner.env.close()
        runner.eval_env.close()
    return seconds


def _iterate(runner: Runner) -> None:
    """One iteration of training as `Runner.learn` does it."""
    runner._collect()
    runner._update()


def _parts(runner: Runner) -> dict[str, float]:
    timer = runner.timer
    learner = timer.collection - timer.simulation - timer.base_policy + timer.update
    return {"simulation": timer.simulation, "base policy": timer.base_policy, "learner": learner}


def _make_sb3(cfg: TrainCfg) -> PPO:
    try:
        from stable_baselines3 import PPO
        from stable_baselines3.common.vec_env import SubprocVecEnv
    except ImportError as error:
        raise MissingDependencyError(
            "stable-baselines3", "install it with `pip install 'residual-rl[sb3]'`"
        ) from error

    # Translate the settings of our PPO.
    learner, run = cfg.learner, cfg.run
    make = functools.partial(
        _make_env,
        cfg.task_id,
        cfg.base_policy_id,
        cfg.residual.residual_scale,
        cfg.residual.residual_penalty,
        dataclasses.asdict(cfg.task),
    )
    return PPO(
        "MlpPolicy",
        SubprocVecEnv([make] * SB3_ENVS),
        n_steps=run.num_envs * learner.num_steps // SB3_ENVS,
        batch_size=learner.minibatch_size,
        n_epochs=learner.num_epochs,
        learning_rate=learner.learning_rate,
        policy_kwargs={"net_arch": list(learner.hidden_sizes), "activation_fn": torch.nn.Tanh},
        seed=run.seed,
        device="cpu",
    )


def _make_env(
    task: str, base_policy: str, scale: float, penalty: float, settings: dict[str, Any]
) -> GymnasiumEnv:
    torch.set_num_threads(1)  # 8 processes with one thread per core each would slow each other down
    return GymnasiumEnv(task, base_policy, scale, penalty, **settings)


def _latencies(runner: Runner) -> tuple[float, float]:
    """Median time of the deterministic residual policy and of the base policy for one env [s]."""
    from residual_rl.factory import make_residual_env

    env = make_residual_env(
        dataclasses.replace(runner.cfg, run=dataclasses.replace(runner.cfg.run, num_threads=1)), 1
    )
    obs = env.reset(seed=0)
    acting = [_seconds(lambda: runner.learner.act(obs, deterministic=True)) for _ in range(300)]
    planning = [_seconds(lambda: env.base_policy.act(obs)) for _ in range(300)]
    env.close()
    return statistics.median(acting), statistics.median(planning)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _peak_memory() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)
