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

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from residual_rl.envs.gymnasium.config import GymnasiumEnvCfg
from residual_rl.envs.gymnasium.vec_env import GymVecEnv
from side_by_side import Rates, make_parser, measure, rates_of, report

_BARE = Path(__file__).with_name("bare_gymnasium.py")


def main() -> None:
    """Measure in turns, write the results and print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--env-id", required=True)
    parser.add_argument("--env-kwargs", nargs="*", default=[])
    parser.add_argument("--env-modules", nargs="*", default=[])
    parser.add_argument("--python", default="")
    parser.add_argument("--adapter", default="")
    parser.add_argument("--success-reward", type=float)
    parser.add_argument("--max-episode-steps", type=int)
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

    # Measure, save and print.
    rates = measure(lambda seconds: turn_of_bare(bare, seconds), env, env._pool.pids, options)
    env.close()
    for process in bare:
        process.communicate()
    name = re.sub(r"[^\w-]", "_", options.env_id)
    report(rates, ("env_id", "env_kwargs"), options, f"gymnasium-stepping-{name}.json")


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


def turn_of_bare(processes: list[subprocess.Popen[str]], seconds: float) -> Rates:
    """The rates over all bare processes."""
    for process in processes:
        assert process.stdin is not None
        print(seconds, file=process.stdin, flush=True)
    results = []
    for process in processes:
        assert process.stdout is not None
        results.append([float(word) for word in process.stdout.readline().split()])
    return rates_of(results)


if __name__ == "__main__":
    main()
