"""CPU time of an imitation policy per env step, with the chunks of all envs synchronised or spread evenly.

python benchmarks/imitation_cost.py runs/bases/flow-20
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.base_policies.il import ILCfg
from residual_rl.factory import make_vec_env
from residual_rl.utils.files import make_folder, write_json
from residual_rl.utils.provenance import git_state, machine

TASK = "so101-paper"


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/imitation-cost.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    costs = {name: _cost(options, spread) for name, spread in (("in step", False), ("spread", True))}
    for name, cost in costs.items():
        print(f"{name}: {cost:.3f} CPU-ms per env step")
    make_folder(options.output.parent)
    results = {
        "task": TASK,
        "num_envs": options.num_envs,
        "checkpoint": options.checkpoint.name,
        "cpu_ms_per_env_step": costs,
    }
    write_json(options.output, {**results, "git": git_state()[0], "machine": machine()})


def _cost(options: argparse.Namespace, spread: bool) -> float:
    """CPU time per env step [ms], median over turns of one chunk each."""
    env = make_vec_env(TASK, options.num_envs, num_threads=1)
    policy = make_base_policy("il", ILCfg(checkpoint=str(options.checkpoint)), env)
    chunk = policy.policy.num_action_steps
    obs, _ = env.reset(seed=1)
    env_ids, times = torch.arange(options.num_envs), []
    for step in range((1 + options.turns) * chunk):
        if spread and step < chunk:  # a part of the envs needs a new chunk at each step
            policy.reset(env_ids % chunk == step)
        start = time.process_time()
        action = policy.act(obs)
        times.append(time.process_time() - start)
        obs, _, terminated, truncated, _ = env.step(action)
        policy.reset(terminated | truncated)
    turns = [times[i : i + chunk] for i in range(chunk, len(times), chunk)]
    return 1e3 * statistics.median(sum(turn) / (chunk * options.num_envs) for turn in turns)


if __name__ == "__main__":
    main()
