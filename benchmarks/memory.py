"""Peak memory of a training against its number of envs.

    python benchmarks/memory.py --num-envs 8 32 128 512 2048

Each row is one process of `residual-rl train` with the flags after `--`, for one update. It measures the
largest resident memory of the process, which holds simulator, networks and collected data; a replay buffer
grows further as it fills.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from residual_rl.cli.train import parse
from residual_rl.utils.files import write_json
from residual_rl.utils.provenance import machine, versions


def peak_bytes(train: list[str], num_envs: int) -> int:
    """Largest resident memory of `residual-rl train` with these flags, over one update."""
    flags = ["--num-envs", str(num_envs), "--eval-episodes", "1", "--eval-freq", "0"]
    cfg = parse(train[0], [*train[1:], *flags]).cfg
    steps = num_envs * cfg.learner.num_steps
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "residual_rl.cli.main", "train", *train, *flags]
        command += ["--total-timesteps", str(steps), "--output-dir", f"{folder}/run"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed with code {process.returncode}")
    return usage.ru_maxrss * 1024  # Linux reports KiB


def main() -> None:
    """Measure, print a table, and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-envs", type=int, nargs="+", default=[8, 32, 128, 512, 2048])
    parser.add_argument("--out", type=Path, default=Path("memory.json"))
    own, train = sys.argv[1:], ["so101-paper"]
    if "--" in own:
        own, train = own[: own.index("--")], own[own.index("--") + 1 :]
    args = parser.parse_args(own)

    # measure each number of envs in a process of its own
    rows: list[dict[str, Any]] = []
    table = Table("envs", "peak memory [MiB]", title=f"train {' '.join(train)}", title_justify="left")
    for num_envs in args.num_envs:
        peak = peak_bytes(train, num_envs)
        rows.append({"num_envs": num_envs, "peak_bytes": peak})
        table.add_row(f"{num_envs:,}", f"{peak / 2**20:,.0f}")
    Console().print(table)
    write_json(
        args.out,
        {"train": train, "rows": rows, "machine": machine(), "versions": versions()["packages"].get("torch")},
    )


if __name__ == "__main__":
    main()
