"""Speed of stepping and training, compared with raw MuJoCo and Stable-Baselines3."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from residual_rl.bench.stepping import NotMujocoError, compare_stepping
from residual_rl.bench.training import SB3_ENVS, SETTINGS, compare_training, time_to_95
from residual_rl.config import TrainCfg
from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.factory import make_residual_env
from residual_rl.utils.provenance import machine, versions
from residual_rl.utils.threads import simulator_threads
from residual_rl.utils.validation import CheckedCfg, NonNegativeInt, NumEnvs, NumThreads, PositiveInt

FORMAT_VERSION = 1
BARE = "bare mj_step, wall"
"""Name of the row with the speed of bare MuJoCo in wall time."""
TO_95 = "time to 95 % success"
CAMERA_SIZE = (128, 128)
"""Height and width of the images that are timed [px]."""


@dataclass(frozen=True)
class BenchCfg(CheckedCfg):
    """Number of envs, threads and repetitions."""

    num_envs: NumEnvs = 32
    """Number of parallel envs."""
    num_threads: NumThreads = 0
    """Simulator threads; 0 means OMP_NUM_THREADS, or else one per CPU core."""
    num_steps: PositiveInt = 100
    """Policy steps of each env per turn of the comparison with bare MuJoCo."""
    repeats: PositiveInt = 5
    """Number of turns of stepping and rendering; results are medians over the turns."""
    training_repeats: PositiveInt = 3
    """Number of turns of training."""
    steps_to_95: NonNegativeInt = 60_000
    """Env steps, at most, of a training until 95 % success, whose duration is given in bare env steps; with
    0 it is left out."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    value: float | None
    """Median, in `unit`; None if it was not measured."""
    unit: str
    note: str = ""
    spread: tuple[float, float] | None = None
    """Smallest and largest value of the turns."""


def run_bench(cfg: TrainCfg, bench: BenchCfg, on_start: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything; returns plain values for JSON.

    `on_start` is called with the name of each measurement.
    """
    torch.set_num_threads(cfg.run.torch_threads)
    cfg = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, num_threads=bench.num_threads))
    started, load = time.perf_counter(), os.getloadavg()

    # Run the measurements.
    rows = {}
    # Training is first, since its peak memory is that of the process.
    measures = {"training": _training, "stepping": _stepping, "cameras": _cameras}
    for name, measure in measures.items():
        on_start(name)
        rows[name] = measure(cfg, bench)

    # Collect the rows in the order of the table, with the conditions of the measurement.
    packages = versions()["packages"]
    return {
        "format_version": FORMAT_VERSION,
        "task": cfg.task_id,
        "settings": dataclasses.asdict(bench),
        "caption": (
            "Stable-Baselines3 runs without our normalisation of observations and rewards. "
            f"Both learners use {cfg.run.torch_threads} torch thread(s), its subprocesses one each."
        ),
        "rows": [
            dataclasses.asdict(row) for part in ("stepping", "training", "cameras") for row in rows[part]
        ],
        "machine": machine(),
        "packages": {
            name: packages[name]
            for name in ("mujoco", "torch", "numpy", "gymnasium", "stable_baselines3")
            if name in packages
        },
        "load_average": {"before": load, "after": os.getloadavg()},
        "duration": time.perf_counter() - started,
    }


def measure_time_to_95(cfg: TrainCfg, bench: BenchCfg, rows: Sequence[Mapping[str, Any]]) -> Row:
    """The time of a training until 95 % success, as the number of bare env steps that take as long.

    Args:
        cfg: the settings of the training.
        bench: the number of threads and the limit on env steps.
        rows: those of `run_bench`, with the speed of bare MuJoCo.
    """
    speed = next((row["value"] for row in rows if row["name"] == BARE), None)
    if speed is None:
        return Row(TO_95, None, "", "the envs are not simulated by MuJoCo")
    cfg = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, num_threads=bench.num_threads))
    seconds = time_to_95(cfg, bench.steps_to_95)
    if seconds is None:
        return Row(TO_95, None, "", f"not reached in {bench.steps_to_95:,} env steps")
    training = f"{seconds:.0f} s of training ({cfg.learner_id}, seed {cfg.run.seed})"
    return Row(TO_95, seconds * speed, "bare env steps", f"{training}, set-up and evaluations included")


def _stepping(cfg: TrainCfg, bench: BenchCfg) -> list[Row]:
    env = make_residual_env(cfg, bench.num_envs)
    try:
        speeds = compare_stepping(env, bench.num_steps, bench.repeats)
    except NotMujocoError as error:
        return [Row("env steps against bare mj_step", None, "", str(error))]
    finally:
        env.close()
    size = f"{bench.num_envs} envs, {bench.num_threads or simulator_threads()} threads"
    return [
        _row(
            "env stepping",
            speeds.env_cpu,
            "steps / CPU-s",
            f"{size}; rewards, observations, {speeds.resets} resets included",
        ),
        _row(
            "bare mj_step on the same states",
            speeds.raw_cpu,
            "steps / CPU-s",
            "mujoco.rollout; ends in the same states, bit for bit",
        ),
        _row("env stepping ÷ bare mj_step", speeds.ratios, "", "per CPU-second"),
        _row("env stepping, wall", speeds.env_wall, "steps / s"),
        _row(BARE, speeds.raw_wall, "steps / s"),
        _row("physics in env stepping", [100.0 * share for share in speeds.physics_share], "% of CPU"),
    ]


def _training(cfg: TrainCfg, bench: BenchCfg) -> list[Row]:
    speeds = compare_training(cfg, bench.training_repeats)
    ours = (
        f"{SETTINGS['num_envs']} envs, {cfg.base_policy_id}, 2,048 steps and 64 gradient steps of 256 per"
        " update"
    )
    theirs = f"{SB3_ENVS} subprocesses, the same env, networks and gradient samples"

    # Compare with Stable-Baselines3 if it is installed.
    rows = [_row("training, all included", speeds.ours, "steps / s", ours)]
    if speeds.missing is None:
        rows += [
            _row("Stable-Baselines3 PPO", speeds.sb3, "steps / s", theirs),
            _row("training ÷ Stable-Baselines3", speeds.ratios, ""),
        ]
    else:
        rows.append(Row("Stable-Baselines3 PPO", None, "", speeds.missing))
    rows += [Row(f"training: {name}", 100.0 * share, "% of time") for name, share in speeds.shares.items()]
    return [
        *rows,
        Row("residual policy, one env", 1e6 * speeds.act_latency, "µs"),
        Row("base policy, one env", 1e6 * speeds.base_latency, "µs", cfg.base_policy_id),
        Row("peak memory of training", speeds.peak_memory / 2**20, "MiB", "envs for evaluation included"),
    ]


def _cameras(cfg: TrainCfg, bench: BenchCfg) -> list[Row]:
    env = make_residual_env(cfg, bench.num_envs)
    name = f"camera images, {CAMERA_SIZE[0]} x {CAMERA_SIZE[1]}"
    try:
        env.reset(seed=0)
        scenes, rates = env.vec_env.scenes(), []
        for turn in range(bench.repeats + 1):
            start = time.perf_counter()
            env.vec_env.render_scenes(scenes, CAMERA_SIZE)
            if turn:  # the first makes the OpenGL contexts
                rates.append(len(scenes) / (time.perf_counter() - start))
    except (MissingDependencyError, ConfigError) as error:
        return [Row(name, None, "", str(error))]
    finally:
        env.close()
    return [_row(name, rates, "frames / s", f"{bench.num_envs} envs, one camera each")]


def _row(name: str, values: Sequence[float], unit: str, note: str = "") -> Row:
    return Row(name, statistics.median(values), unit, note, (min(values), max(values)))
