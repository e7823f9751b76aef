"""`residual-rl doctor`: the sanity suite of a task."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence

import torch
from rich.text import Text

from residual_rl.cli.flags import parse_flags, require_target
from residual_rl.config import TrainCfg
from residual_rl.registry import TASKS
from residual_rl.sanity.suite import Check, examine, format_table
from residual_rl.utils.console import Console


@dataclasses.dataclass(frozen=True)
class DoctorFlags:
    """Flags of `doctor` that are not settings."""

    quick: bool = False
    """Shorter runs and fewer episodes, for a first check in seconds."""


def main(argv: Sequence[str]) -> int:
    """Parse, run the checks, print a table; the exit code is 1 if a check failed."""
    target, rest = require_target(argv, "doctor", "TASK", "Check a task")
    spec, cfg = TASKS.get(target), TrainCfg.default(target)
    about = "Check the physics, rewards and episodes of a task."
    parsed = parse_flags({"own": DoctorFlags(), "task": cfg.task}, rest, f"doctor {target}", about)
    torch.set_num_threads(1)
    # run the checks, with progress on a terminal, or else on stderr
    console, checks, start = Console(), list[Check](), time.perf_counter()
    with console.status("running the checks") as status:

        def report(name: str) -> None:
            status.update(Text(f"{len(checks)} checks done; now: {name}"))
            if not console.is_terminal:  # the status line is not shown there
                print(
                    f"{time.perf_counter() - start:4.0f} s, {len(checks)} checks done; now: {name}",
                    file=sys.stderr,
                    flush=True,
                )

        for check in examine(spec, parsed["task"], parsed["own"].quick, report):
            checks.append(check)
            status.update(Text(f"{len(checks)} checks done; last: {check.name}"))
    # print the table and one line with the outcome
    console.print(format_table(f"Sanity of {target}", checks))
    failed = [check.name for check in checks if not check.ok]
    verdict = (
        f"{len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}"
        if failed
        else f"all {len(checks)} checks passed"
    )
    console.say(f"{verdict} ({time.perf_counter() - start:.0f} s)")
    return 1 if failed else 0
