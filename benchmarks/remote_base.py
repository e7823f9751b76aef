"""Time of a query of a base policy over loopback and in the same process: medians per env step.

    python benchmarks/remote_base.py

It serves `jacobian` with each protocol in turn and queries both with equal observations, for 1 env and for
32.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.base_policies.gr00t import Gr00tCfg
from residual_rl.base_policies.openpi import OpenPiCfg
from residual_rl.factory import make_vec_env
from residual_rl.types import Obs
from residual_rl.utils.files import write_json
from residual_rl.utils.provenance import git_state, machine

PROTOCOLS = ("gr00t", "gr00t-n15", "openpi")
TASK, POLICY = "so101-paper", "jacobian"


def main() -> None:
    """Measure, save and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/remote-base.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for protocol in PROTOCOLS for row in _measure(protocol, options.steps)]
    write_json(
        options.output,
        {"task": TASK, "policy": POLICY, "git": git_state()[0], "machine": machine(), "rows": rows},
    )
    table = Table(
        "protocol",
        "envs",
        "remote [ms]",
        "in process [ms]",
        title="one env step's base actions, medians",
        title_justify="left",
    )
    for row in rows:
        table.add_row(
            row["protocol"], str(row["num_envs"]), f"{row['remote_ms']:.2f}", f"{row['local_ms']:.2f}"
        )
    Console().print(table)


def _measure(protocol: str, steps: int) -> list[dict[str, Any]]:
    serve = [
        sys.executable,
        "-m",
        "residual_rl.cli.main",
        "serve",
        POLICY,
        "--task",
        TASK,
        "--protocol",
        protocol,
        "--port",
        "0",
    ]
    server = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = None
        while found is None:  # the line with the port
            found = re.search(r":(\d+), protocol", server.stdout.readline())
        return [_row(protocol, int(found[1]), num_envs, steps) for num_envs in (1, 32)]
    finally:
        server.terminate()
        server.wait()


def _row(protocol: str, port: int, num_envs: int, steps: int) -> dict[str, Any]:
    env = make_vec_env(TASK, num_envs, num_threads=1)
    local = make_base_policy(POLICY, None, env)
    if protocol == "openpi":
        remote = make_base_policy("openpi", OpenPiCfg(port=port), env)
    else:
        remote = make_base_policy(
            "gr00t", Gr00tCfg(port=port, layout="n1.5" if protocol == "gr00t-n15" else "n1.6"), env
        )
    obs, _ = env.reset(seed=1)
    times: dict[str, list[float]] = {"remote": [], "local": []}
    for _ in range(steps):
        there, took = _timed(remote, obs)
        times["remote"].append(took)
        here, took = _timed(local, obs)
        times["local"].append(took)
        assert (there - here).abs().max() < 1e-4
        obs, _, terminated, truncated, _ = env.step(here)
        for policy in (remote, local):
            policy.reset(terminated | truncated)
    return {"protocol": protocol, "num_envs": num_envs} | {
        f"{name}_ms": 1e3 * statistics.median(values) for name, values in times.items()
    }


def _timed(policy: BasePolicyExecutor, obs: Obs) -> tuple[torch.Tensor, float]:
    start = time.perf_counter()
    action = policy.act(obs)
    return action, time.perf_counter() - start


if __name__ == "__main__":
    main()
