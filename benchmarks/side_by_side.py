"""Env steps per second of a vec_env with worker processes, compared with as many bare processes, in turns.

The part that `gymnasium_stepping.py` and `maniskill_stepping.py` have in common.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from residual_rl.envs.vec_env import VecEnv
from residual_rl.utils.files import make_folder, write_json
from residual_rl.utils.provenance import machine

Rates = tuple[float, float]
"""Env steps per second of wall time and of CPU time."""
_TICK = os.sysconf("SC_CLK_TCK")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the flags of both benchmarks."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2, help="number of processes of each side")
    parser.add_argument("--envs-per-worker", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of a turn of one side")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    return parser


def rates_of(results: Sequence[Sequence[float]]) -> Rates:
    """The rates over all bare processes, from the number of steps, wall time and CPU time of each."""
    steps, walls, cpus = zip(*results, strict=True)
    return sum(step / wall for step, wall in zip(steps, walls, strict=True)), sum(steps) / sum(cpus)


def measure(
    turn_of_bare: Callable[[float], Rates], env: VecEnv, pids: Sequence[int], options: argparse.Namespace
) -> dict[str, list[Rates]]:
    """The rates of each turn of the bare processes and of our `env`, whose workers have the ids `pids`."""
    rates: dict[str, list[Rates]] = {"bare": [], "ours": []}
    sides = {"bare": turn_of_bare, "ours": lambda seconds: _turn_of_ours(env, pids, seconds)}
    for side in sides.values():
        side(1.0)  # warm-up
    for turn in range(options.turns):
        for name in sorted(sides, reverse=turn % 2 == 1):
            rates[name].append(sides[name](options.seconds))
    return rates


def report(
    rates: Mapping[str, list[Rates]],
    settings: Sequence[str],
    options: argparse.Namespace,
    file_name: str,
) -> None:
    """Save the rates with the options `settings`, and print the medians over turns."""
    # Aggregate and save.
    wall, cpu = (
        {name: statistics.median(pair[i] for pair in pairs) for name, pairs in rates.items()} for i in (0, 1)
    )
    ratios = [
        statistics.median(
            ours[i] / theirs[i] for ours, theirs in zip(rates["ours"], rates["bare"], strict=True)
        )
        for i in (0, 1)
    ]
    result: dict[str, Any] = {
        **{name: getattr(options, name) for name in (*settings, "workers", "envs_per_worker", "seconds")},
        "turns": {
            name: [{"per_second": w, "per_cpu_second": c} for w, c in pairs] for name, pairs in rates.items()
        },
        "ratio_wall": ratios[0],
        "ratio_cpu": ratios[1],
        "load_average": os.getloadavg()[0],
        "machine": machine(),
    }
    make_folder(options.output)
    write_json(options.output / file_name, result)

    # Print.
    table = Table(
        title=f"{options.env_id}, {options.workers} processes, load average {os.getloadavg()[0]:.1f}"
    )
    for column in ("", "env steps / s", "env steps / CPU s"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name in ("bare", "ours"):
        table.add_row(name, f"{wall[name]:.0f}", f"{cpu[name]:.0f}")
    table.add_row("ours ÷ bare", *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)


def _turn_of_ours(env: VecEnv, pids: Sequence[int], seconds: float) -> Rates:
    """The rates of our vec_env, including its workers."""
    start, cpu, steps = time.perf_counter(), _cpu_time(pids) + time.process_time(), 0
    while time.perf_counter() - start < seconds:
        env.step(torch.rand(env.num_envs, len(env.action_unit)) * 2 - 1)
        steps += env.num_envs
    wall = time.perf_counter() - start
    return steps / wall, steps / (_cpu_time(pids) + time.process_time() - cpu)


def _cpu_time(pids: Sequence[int]) -> float:
    """Time that the processes have used on a CPU [s]."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields) / _TICK
