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

import multiprocessing
import time
from multiprocessing.connection import Connection

import torch

from residual_rl.tasks.maniskill.config import ManiSkillCfg
from residual_rl.tasks.maniskill.factory import make
from side_by_side import Rates, make_parser, measure, rates_of, report


def main() -> None:
    """Measure in turns, write the results and print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--env-id", default="PushCube-v1")
    parser.add_argument("--control-mode", default="pd_joint_delta_pos")
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

    # Measure, save and print.
    pids = env._sim.pool.pids  # type: ignore[attr-defined]
    rates = measure(lambda seconds: turn_of_bare(bare, seconds), env, pids, options)
    env.close()
    for process in bare:
        process.send(None)
    report(rates, ("env_id", "control_mode"), options, "maniskill-stepping.json")


def turn_of_bare(processes: list[Connection], seconds: float) -> Rates:
    """The rates over all bare processes."""
    for process in processes:
        process.send(seconds)
    return rates_of([process.recv() for process in processes])


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
