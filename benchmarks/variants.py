"""Compare variants of a training run, with several seeds each: success rate in evaluation over env steps.

    python benchmarks/variants.py benchmarks/sac_ablations.json --seeds 1 2 3

A file of variants has the common arguments and those of each variant:

    {"name": "…", "train": ["so101-paper", "--learner", "sac"],
     "variants": {"reference": [], "n-step 1": ["--n-step", "1"]}}

An optional object `files`, {PATH: arguments of `residual-rl`}, lists files to create before, with `--out
PATH`, unless they exist.

It writes docs/results/NAME.json, and NAME.png with the curves. Finished runs are reused, and interrupted ones
are resumed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from residual_rl.evaluation.formatting import interval_text
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import make_folder, write_json
from residual_rl.utils.provenance import machine
from residual_rl.utils.statistics import proportion
from resumable import is_finished, make_file, train_run, training_curve


def main() -> None:
    """Train the missing runs, write the results and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the variants")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--only",
        nargs="*",
        default=None,
        help="variants to train; of the others, existing runs are used",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/variants"))
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    spec = json.loads(options.file.read_text())
    name, variants = spec["name"], spec["variants"]
    runs = {
        (variant, seed): RunFolder(options.runs / f"{name}-{slug(variant)}-{seed}")
        for variant in variants
        for seed in options.seeds
    }

    # Create the files, and train the missing runs.
    for path, arguments in spec.get("files", {}).items():
        make_file(Path(path), arguments)
    for seed in options.seeds:
        for variant, flags in variants.items():
            if options.only is None or variant in options.only:
                train_run(runs[variant, seed], [*spec["train"], *flags], seed)

    # Collect the curves of the finished runs, save and print.
    rows = {}
    for variant, flags in variants.items():
        trained = {
            seed: runs[variant, seed] for seed in options.seeds if is_finished(runs[variant, seed].path)
        }
        if trained:
            commits = {
                seed: json.loads((run.path / "versions.json").read_text())["git"]
                for seed, run in trained.items()
            }
            rows[variant] = {
                "flags": flags,
                "git": commits,
                "seeds": {seed: training_curve(run) for seed, run in trained.items()},
            }
    result = {"train": spec["train"], "machine": machine(), "variants": rows}
    make_folder(options.output)
    write_json(options.output / f"{name}.json", result)
    _plot(rows, options.output / f"{name}.png")
    _print(rows)


def slug(variant: str) -> str:
    """The name of a variant as part of the name of a folder."""
    return "".join(c if c.isalnum() else "-" for c in variant)


def pooled(curves: list[list[list[float]]], index: int) -> tuple[list[float], str]:
    """Success rate of each seed in evaluation `index`, and that of all episodes with its interval as text."""
    points = [curve[index] for curve in curves]
    outcomes = [i < round(rate * episodes) for _, rate, episodes in points for i in range(int(episodes))]
    summary = proportion(outcomes)
    return [
        rate for _, rate, _ in points
    ], f"{100 * summary.mean:.1f} {interval_text('success_once', summary.to_json()['interval'])}"


def _print(rows: dict[str, Any]) -> None:
    longest = max((next(iter(row["seeds"].values())) for row in rows.values()), key=len)
    table = Table("variant", *(f"{int(step):,} steps" for step, _, _ in longest[1:]))
    for variant, row in rows.items():
        curves = list(row["seeds"].values())
        cells = []
        for index in range(1, min(len(curve) for curve in curves)):
            rates, text = pooled(curves, index)
            cells.append(f"{text}\n({', '.join(f'{100 * rate:.1f}' for rate in rates)})")
        table.add_row(variant, *cells)
    Console(width=160).print(table)


def _plot(rows: dict[str, Any], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=matplotlib.colormaps["tab20"].colors)
    for variant, row in rows.items():
        curves = list(row["seeds"].values())
        length = min(len(curve) for curve in curves)
        means = [100 * sum(curve[i][1] for curve in curves) / len(curves) for i in range(length)]
        axes.plot([curves[0][i][0] for i in range(length)], means, marker=".", label=variant)
    axes.set(xlabel="env steps", ylabel="success in evaluation [%], mean of the seeds", ylim=(-2, 102))
    figure.legend(fontsize="small", loc="outside right center")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
