"""Variants of one training beside each other, several seeds each: how much of the fixed evaluation episodes succeeds after so many steps.

    python benchmarks/variants.py benchmarks/sac_ablations.json --seeds 1 2 3

A file of variants names what all have in common and what each changes:

    {"name": "…", "train": ["so101-paper", "--learner", "sac"], "variants": {"reference": [], "n-step 1": ["--n-step", "1"]}}

A `files` object beside them, {PATH: arguments of `residual-rl`}, has files made first that are not there, with `--out PATH`.

The result is docs/results/NAME.json, and NAME.png with the curves. What is trained already is taken as it is, and interrupted runs go on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from residual_rl.evaluation.formatting import interval_text
from residual_rl.runs.logger import read_metrics
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import make_folder, write_json
from residual_rl.utils.provenance import machine
from residual_rl.utils.statistics import proportion
from train_seeds import run_cli, train_run


def main() -> None:
    """Parse, train what is missing, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the variants")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--only",
        nargs="*",
        default=None,
        help="variants to train; the others are taken as far as they are there",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/variants"))
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    told = json.loads(options.file.read_text())
    name, variants = told["name"], told["variants"]
    runs = {
        (variant, seed): RunFolder(options.runs / f"{name}-{slug(variant)}-{seed}")
        for variant in variants
        for seed in options.seeds
    }
    for path, arguments in told.get("files", {}).items():
        make_file(Path(path), arguments)
    for seed in options.seeds:
        for variant, flags in variants.items():
            if options.only is None or variant in options.only:
                train_run(runs[variant, seed], [*told["train"], *flags], seed)
    rows = {}
    for variant, flags in variants.items():
        trained = {
            seed: runs[variant, seed] for seed in options.seeds if runs[variant, seed].final_model.exists()
        }
        if trained:
            commits = {
                seed: json.loads((run.path / "versions.json").read_text())["git"]
                for seed, run in trained.items()
            }
            rows[variant] = {
                "flags": flags,
                "git": commits,
                "seeds": {seed: curve(run) for seed, run in trained.items()},
            }
    result = {"train": told["train"], "machine": machine(), "variants": rows}
    make_folder(options.output)
    write_json(options.output / f"{name}.json", result)
    _plot(rows, options.output / f"{name}.png")
    _print(rows)


def make_file(path: Path, arguments: list[str]) -> None:
    """Have `residual-rl` make it, unless it is there: elsewhere first, so that what is there is whole."""
    if path.exists():
        return
    make_folder(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent) as making:
        run_cli(*arguments, "--out", f"{making}/{path.name}")
        for made in sorted(
            Path(making).iterdir(), key=lambda made: made.name == path.name
        ):  # what stands beside it first
            made.rename(path.parent / made.name)


def slug(variant: str) -> str:
    """A variant's name as a part of a folder's."""
    return "".join(c if c.isalnum() else "-" for c in variant)


def curve(run: RunFolder) -> list[list[float]]:
    """Env steps, share of the evaluation's episodes that succeeded, and how many episodes those were, for each evaluation."""
    episodes = json.loads(run.config_file.read_text())["run"]["eval_episodes"]
    rows = read_metrics(run.metrics_file)
    return [
        [row["step"], row["eval/success_rate"], episodes]
        for row in rows
        if row.get("eval/success_rate") is not None
    ]


def pooled(curves: list[list[list[float]]], index: int) -> tuple[list[float], str]:
    """Of the evaluation of that index: the rate of each seed, and of all episodes together with its interval."""
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
