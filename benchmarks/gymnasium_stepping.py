"""Env steps per second of Gymnasium envs through our worker processes, compared with as many bare processes.

    python benchmarks/gymnasium_stepping.py --env-id AdroitHandDoor-v1 --env-modules gymnasium_robotics \
        --python venv/bin/python --workers 2

Both sides have equal numbers of processes, random actions, and episodes of the env's length. A bare process
steps one env in a loop without synchronisation, normalisation or copies. Our vec_env steps all of its envs
together and returns observations, rewards and ends of episodes in one process. The two sides alternate, in
alternating order, and results are medians over turns. The last line is ours ÷ bare. Other load on the machine
distorts wall time, and CPU time less. Writes docs/results/gymnasium-stepping-ENV.json (`--output`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from residual_rl.envs.gymnasium.config import GymnasiumEnvCfg
from residual_rl.envs.gymnasium.vec_env import GymVecEnv
from residual_rl.utils.files import make_folder, write_json
from residual_rl.utils.provenance import machine

_TICK = os.sysconf("SC_CLK_TCK")
_BARE = Path(__file__).with_name("bare_gymnasium.py")


def main() -> None:
    """Measure in turns, write the results and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env-id", required=True)
    parser.add_argument("--env-kwargs", nargs="*", default=[])
    parser.add_argument("--env-modules", nargs="*", default=[])
    parser.add_argument("--python", default="")
    parser.add_argument("--adapter", default="")
    parser.add_argument("--success-reward", type=float)
    parser.add_argument("--max-episode-steps", type=int)
    parser.add_argument("--workers", type=int, default=2, help="number of processes of each side")
    parser.add_argument("--envs-per-worker", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of a turn of one side")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()

    # Start both sides.
    cfg = GymnasiumEnvCfg(
        env_id=options.env_id,
        env_kwargs=tuple(options.env_kwargs),
        env_modules=tuple(options.env_modules),
        python=options.python,
        adapter=options.adapter,
        success_reward=options.success_reward,
        max_episode_steps=options.max_episode_steps,
        end_at_success=False,
        render=False,
    )
    bare = [start_bare(cfg, seed) for seed in range(options.workers)]
    env = GymVecEnv(cfg, options.workers * options.envs_per_worker, options.workers)
    env.reset(seed=0)

    # Measure in turns.
    rates: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
    sides = {
        "bare": lambda seconds: turn_of_bare(bare, seconds),
        "ours": lambda seconds: turn_of_ours(env, seconds),
    }
    for side in sides.values():
        side(1.0)  # warm-up
    for turn in range(options.turns):
        for name in sorted(sides, reverse=turn % 2 == 1):
            rates[name].append(sides[name](options.seconds))
    env.close()
    for process in bare:
        process.communicate()

    # Aggregate, save and print.
    wall, cpu = (
        {name: statistics.median(pair[i] for pair in pairs) for name, pairs in rates.items()} for i in (0, 1)
    )
    ratios = [
        statistics.median(
            ours[i] / theirs[i] for ours, theirs in zip(rates["ours"], rates["bare"], strict=True)
        )
        for i in (0, 1)
    ]
    result = {
        **{
            name: getattr(options, name)
            for name in ("env_id", "env_kwargs", "workers", "envs_per_worker", "seconds")
        },
        "turns": {
            name: [{"per_second": w, "per_cpu_second": c} for w, c in pairs] for name, pairs in rates.items()
        },
        "ratio_wall": ratios[0],
        "ratio_cpu": ratios[1],
        "load_average": os.getloadavg()[0],
        "machine": machine(),
    }
    make_folder(options.output)
    name = re.sub(r"[^\w-]", "_", options.env_id)
    write_json(options.output / f"gymnasium-stepping-{name}.json", result)
    table = Table(
        title=f"{options.env_id}, {options.workers} processes, load average {os.getloadavg()[0]:.1f}"
    )
    for column in ("", "env steps / s", "env steps / CPU s"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name in ("bare", "ours"):
        table.add_row(name, f"{wall[name]:.0f}", f"{cpu[name]:.0f}")
    table.add_row("ours ÷ bare", *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)


def start_bare(cfg: GymnasiumEnvCfg, seed: int) -> subprocess.Popen[str]:
    """Start a bare process and wait until it is ready."""
    command = [cfg.python or sys.executable, str(_BARE), json.dumps(cfg.worker_settings()), str(seed)]
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **one_thread},
    )
    assert process.stdout is not None
    while process.stdout.readline().strip() != "ready":
        assert process.poll() is None, "the bare process has ended"
    return process


def turn_of_bare(processes: list[subprocess.Popen[str]], seconds: float) -> tuple[float, float]:
    """Env steps per second of wall time and of CPU time, over all bare processes."""
    results = []
    for process in processes:
        assert process.stdin is not None
        print(seconds, file=process.stdin, flush=True)
    for process in processes:
        assert process.stdout is not None
        results.append([float(word) for word in process.stdout.readline().split()])
    steps, walls, cpus = zip(*results, strict=True)
    return sum(step / wall for step, wall in zip(steps, walls, strict=True)), sum(steps) / sum(cpus)


def turn_of_ours(env: GymVecEnv, seconds: float) -> tuple[float, float]:
    """Env steps per second of wall time and of CPU time of our vec_env, including its workers."""
    workers = env._pool.pids
    start, cpu, steps = time.perf_counter(), cpu_time(workers) + time.process_time(), 0
    while time.perf_counter() - start < seconds:
        env.step(torch.rand(env.num_envs, len(env.action_unit)) * 2 - 1)
        steps += env.num_envs
    wall = time.perf_counter() - start
    return steps / wall, steps / (cpu_time(workers) + time.process_time() - cpu)


def cpu_time(pids: list[int]) -> float:
    """CPU time of the processes so far [s]."""
    fields = [Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split() for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields) / _TICK


if __name__ == "__main__":
    main()
