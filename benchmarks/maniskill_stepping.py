"""Env steps per second of our ManiSkill envs on the CPU, compared with bare processes that step the same env.

    .venv-maniskill/bin/python benchmarks/maniskill_stepping.py --env-id PushCube-v1 --workers 2

Both sides have equal numbers of processes, random actions in [-1, 1], state observations, and episodes of the
task's length. A bare process steps one `gymnasium.make` env in a loop without synchronisation. Our vec_env
steps all of its envs together and returns observations, rewards and ends of episodes in one process. The two
sides alternate, in alternating order, and results are medians over turns. The last line is ours ÷ bare. Other
load on the machine distorts wall time, and CPU time less. Writes docs/results/maniskill-stepping.json
(`--output`).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from residual_rl.envs.maniskill.vec_env import ManiSkillVecEnv
from residual_rl.tasks.maniskill.config import ManiSkillCfg
from residual_rl.tasks.maniskill.factory import make
from residual_rl.utils.files import make_folder, write_json
from residual_rl.utils.provenance import machine

_TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure in turns, write the results and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env-id", default="PushCube-v1")
    parser.add_argument("--control-mode", default="pd_joint_delta_pos")
    parser.add_argument("--workers", type=int, default=2, help="number of processes of each side")
    parser.add_argument("--envs-per-worker", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of a turn of one side")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()

    # Start both sides.
    context = multiprocessing.get_context("spawn")
    bare = []
    for seed in range(options.workers):
        ours_end, theirs_end = context.Pipe()
        context.Process(
            target=bare_process, args=(options.env_id, options.control_mode, seed, theirs_end), daemon=True
        ).start()
        ours_end.recv()  # ready
        bare.append(ours_end)
    cfg = ManiSkillCfg(env_id=options.env_id, control_mode=options.control_mode)
    env = make(cfg, options.workers * options.envs_per_worker, options.workers, "cpu")
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
        process.send(None)

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
        "env_id": options.env_id,
        "control_mode": options.control_mode,
        "workers": options.workers,
        "envs_per_worker": options.envs_per_worker,
        "seconds": options.seconds,
        "turns": {
            name: [{"per_second": w, "per_cpu_second": c} for w, c in pairs] for name, pairs in rates.items()
        },
        "ratio_wall": ratios[0],
        "ratio_cpu": ratios[1],
        "load_average": os.getloadavg()[0],
        "machine": machine(),
    }
    make_folder(options.output)
    write_json(options.output / "maniskill-stepping.json", result)
    table = Table(
        title=f"{options.env_id}, {options.workers} processes, load average {os.getloadavg()[0]:.1f}"
    )
    for column in ("", "env steps / s", "env steps / CPU s"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name in ("bare", "ours"):
        table.add_row(name, f"{wall[name]:.0f}", f"{cpu[name]:.0f}")
    table.add_row("ours ÷ bare", *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)


def turn_of_bare(processes: list[Connection], seconds: float) -> tuple[float, float]:
    """Env steps per second of wall time and of CPU time, over all bare processes."""
    for process in processes:
        process.send(seconds)
    steps, walls, cpus = zip(*(process.recv() for process in processes), strict=True)
    return sum(step / wall for step, wall in zip(steps, walls, strict=True)), sum(steps) / sum(cpus)


def turn_of_ours(env: ManiSkillVecEnv, seconds: float) -> tuple[float, float]:
    """Env steps per second of wall time and of CPU time of our vec_env, including its workers."""
    workers = env._sim.pool.pids  # type: ignore[attr-defined]
    start, cpu, steps = time.perf_counter(), cpu_time(workers) + time.process_time(), 0
    while time.perf_counter() - start < seconds:
        env.step(torch.rand(env.action_space.shape) * 2 - 1)  # type: ignore[arg-type]
        steps += env.num_envs
    wall = time.perf_counter() - start
    return steps / wall, steps / (cpu_time(workers) + time.process_time() - cpu)


def cpu_time(pids: list[int]) -> float:
    """CPU time of the processes so far [s]."""
    fields = [Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split() for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields) / _TICK


def bare_process(env_id: str, control_mode: str, seed: int, pipe: Connection) -> None:
    """Receive a duration [s], step one env for that long, send (steps, wall time, CPU time), and repeat."""
    import gymnasium
    import mani_skill.envs  # noqa: F401

    from residual_rl.envs.maniskill import headless as no_device

    torch.set_num_threads(1)
    if not no_device.vulkan_works():
        no_device.replace_materials()
    env = gymnasium.make(
        env_id,
        num_envs=1,
        obs_mode="state",
        control_mode=control_mode,
        sim_backend="physx_cpu",
        render_backend="none",
    )
    env.reset(seed=seed)
    size = env.action_space.shape
    pipe.send("ready")
    while (seconds := pipe.recv()) is not None:
        start, cpu, steps = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            *_, terminated, truncated, _ = env.step(torch.rand(size) * 2 - 1)
            if terminated or truncated:
                env.reset()
            steps += 1
        pipe.send((steps, time.perf_counter() - start, time.process_time() - cpu))


if __name__ == "__main__":
    main()
