"""`residual-rl bench`: the speed of stepping and training, beside raw MuJoCo and Stable-Baselines3."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from residual_rl.bench.bench import BenchCfg, run_bench
from residual_rl.cli.flags import parts_of, require_target
from residual_rl.config import TrainCfg
from residual_rl.utils.files import make_folder, write_json

QUICK = {"num_steps": 20, "repeats": 1, "training_repeats": 1}
"""Settings of `--quick`."""


def main(argv: Sequence[str]) -> int:
    """Parse, measure, print a table and save it."""
    task_id, rest = require_target(argv, "bench", "TASK", "Measure speeds")
    cfg = TrainCfg.default(task_id)
    quick = "--quick" in rest
    bench = dataclasses.replace(BenchCfg(), **QUICK) if quick else BenchCfg()
    flags: Any = tyro.cli(
        _flags(cfg, bench), args=rest, prog=f"residual-rl bench {task_id}", description="Measure; the figures are medians of turns."
    )
    output = flags.output or Path(f"bench-{task_id}.json")
    make_folder(output.parent)  # before the work, not after it
    console = Console()
    with console.status("") as status:
        results = run_bench(dataclasses.replace(cfg, task=flags.task), flags.bench, lambda what: status.update(f"measuring {what} …"))
    write_json(output, results)
    console.print(_table(results))
    for row in results["rows"]:
        if row["note"]:
            console.print(f"{row['name']}: {row['note']}.", soft_wrap=True)
    before, after = (" ".join(f"{value:.1f}" for value in results["load_average"][when]) for when in ("before", "after"))
    cpu, cores = results["machine"]["cpu"], results["machine"]["cores"]
    console.print(f"{cores} cores of {cpu}; load average {before} before, {after} after. Other load distorts.", soft_wrap=True)
    console.print(f"Saved: {output}", soft_wrap=True)
    return 0


def _flags(cfg: TrainCfg, bench: BenchCfg) -> type:
    """A dataclass of all that `bench` can be told for this task."""
    own: list[tuple[str, Any, Any]] = [
        ("bench", Annotated[BenchCfg, tyro.conf.arg(name="")], dataclasses.field(default=bench)),
        (
            "output",
            Annotated[Path | None, tyro.conf.arg(help="File for the results. None: bench-TASK.json, here.")],
            dataclasses.field(default=None),
        ),
        (
            "quick",
            Annotated[bool, tyro.conf.arg(help="One short turn of each, in about 30 s: to see that it works.")],
            dataclasses.field(default=False),
        ),
    ]
    return dataclasses.make_dataclass("Bench", [*own, *parts_of(cfg, ("task",))])


def _table(results: dict[str, Any]) -> Table:
    title = f"{results['task']}: medians of several turns"
    table = Table("what", title=title, caption=results["caption"], title_justify="left", caption_justify="left")
    table.add_column("median", justify="right")
    table.add_column("from … to", justify="right")
    table.add_column("unit")
    for row in results["rows"]:
        value = "-" if row["value"] is None else _number(row["value"])
        table.add_row(row["name"], value, " … ".join(map(_number, row["spread"])) if row["spread"] else "", row["unit"])
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100.0 else f"{value:.3g}"
