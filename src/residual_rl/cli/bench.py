"""`residual-rl bench`: the speed of stepping and training, compared with raw MuJoCo and Stable-Baselines3."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table
from rich.text import Text

from residual_rl.bench.bench import BenchCfg, measure_time_to_95, run_bench
from residual_rl.cli.flags import parse_flags, parse_head, require_target
from residual_rl.config import TrainCfg
from residual_rl.utils.console import Console
from residual_rl.utils.files import make_folder, write_json

QUICK = {"num_steps": 20, "repeats": 1, "training_repeats": 1, "steps_to_95": 0}
"""Settings of `--quick`."""


@dataclasses.dataclass(frozen=True)
class BenchFlags:
    """Flags of `bench` that are not settings."""

    output: Annotated[Path | None, tyro.conf.arg(aliases=["--out"])] = None
    """File for the results. None: bench-TASK.json in the working folder."""
    quick: bool = False
    """One short repeat of each measurement, about 30 s in all, as a smoke test."""


def main(argv: Sequence[str]) -> int:
    """Parse, measure, save the results and print a table."""
    task_id, rest = require_target(argv, "bench", "TASK", "Measure speeds")
    # --quick changes the defaults of the other flags, so it is read first
    cfg = TrainCfg.default(task_id)
    head = parse_head(BenchFlags(), rest, f"bench {task_id}")
    bench = dataclasses.replace(BenchCfg(), **QUICK) if head.quick else BenchCfg()
    groups = {"own": head, "bench": bench, "task": cfg.task}
    about = "Measure speeds; the values are medians over several repeats."
    parsed = parse_flags(groups, rest, f"bench {task_id}", about)
    flags: BenchFlags = parsed["own"]
    bench, cfg = parsed["bench"], dataclasses.replace(cfg, task=parsed["task"])
    output = flags.output or Path(f"bench-{task_id}.json")
    make_folder(output.parent)  # before the measurements: a wrong path fails early
    console = Console()
    # measure, and show the current measurement
    with console.status("") as status:
        results = run_bench(
            cfg,
            bench,
            lambda name: status.update(Text(f"measuring {name} …")),
        )
    # a training, with its own progress bar
    if bench.steps_to_95:
        row = measure_time_to_95(cfg, bench, results["rows"])
        results["rows"].append(dataclasses.asdict(row))
    # save before printing, then print the table and its notes
    write_json(output, results)
    console.print(_table(results))
    for row in results["rows"]:
        if row["note"]:
            console.say(f"{row['name']}: {row['note']}.")
    # the load average shows whether other processes distorted the results
    before, after = (
        " ".join(f"{value:.1f}" for value in results["load_average"][when]) for when in ("before", "after")
    )
    cpu, cores = results["machine"]["cpu"], results["machine"]["cores"]
    console.say(
        f"{cores} cores of {cpu}; load average {before} before, {after} after. "
        "Other load distorts the results.",
    )
    console.say(f"Saved: {output}")
    return 0


def _table(results: dict[str, Any]) -> Table:
    title = f"{results['task']}: medians of several turns"
    table = Table(
        "measurement", title=title, caption=results["caption"], title_justify="left", caption_justify="left"
    )
    table.add_column("median", justify="right")
    table.add_column("from … to", justify="right")
    table.add_column("unit")
    for row in results["rows"]:
        value = "-" if row["value"] is None else _number(row["value"])
        table.add_row(
            row["name"], value, " … ".join(map(_number, row["spread"])) if row["spread"] else "", row["unit"]
        )
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100.0 else f"{value:.3g}"
