"""What each option of so101-paper that imitates a real arm costs and gains.

    python benchmarks/transfer.py                  # the rows of transfer.json
    python benchmarks/transfer.py --table-only     # the results so far

PPO is trained over `jacobian` with none of the options, with all of them and with one at a time. Each policy
is evaluated on the same 200 fresh episodes of the ordinary task, and of a setting that is harder than any it
was trained in. It writes transfer.json and transfer.png, and prints the table. Finished parts are reused and
interrupted ones are resumed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import make_folder, write_json
from residual_rl.utils.provenance import machine
from resumable import is_finished, make_file, train_run
from transfer_results import plot, results_of, table

NOTHING, ALL = "nothing", "all"


def main() -> None:
    """Train and evaluate what is missing, write the results and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", help="rows to run, by default all")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--episodes", type=int, default=200, help="fresh episodes of each evaluation")
    parser.add_argument("--spec", type=Path, default=Path(__file__).with_suffix(".json"), help="the rows")
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    spec = json.loads(options.spec.read_text(encoding="utf-8"))
    unknown = set(options.rows or ()) - set(flags_by_row(spec))
    if unknown:
        parser.error(f"unknown row {min(unknown)!r}: choose from {', '.join(flags_by_row(spec))}")

    # Run what is missing: policies first, then the controllers, which show how hard the settings are.
    if not options.table_only:
        for row in options.rows or flags_by_row(spec):
            run = run_of(options.runs, row)
            train_run(run, train_arguments(spec, row), spec["seed"])
            for setting in spec["settings"]:
                make_file(
                    file_of(options.runs, row, setting),
                    eval_arguments(spec, setting, str(run.path), options.episodes),
                )
        for controller, setting in itertools.product(spec["controllers"], spec["settings"]):
            arguments = eval_arguments(spec, setting, spec["task"][0], options.episodes)
            make_file(file_of(options.runs, controller, setting), [*arguments, "--base-policy", controller])

    # Save and print what there is.
    results = collect(spec, options.runs)
    make_folder(options.output)
    write_json(options.output / "transfer.json", results)
    plot(results, options.output / "transfer.png")
    Console(width=120).print(table(results))


def flags_by_row(spec: Mapping[str, Any]) -> dict[str, list[str]]:
    """The flags of each row: without options, with all of them, and with one at a time."""
    single: dict[str, list[str]] = spec["options"]
    return {NOTHING: [], ALL: list(itertools.chain.from_iterable(single.values())), **single}


def train_arguments(spec: Mapping[str, Any], row: str) -> list[str]:
    """The arguments of `residual-rl train` for a row, without seed and folder."""
    return [*spec["task"], *spec["train"], *flags_by_row(spec)[row]]


def eval_arguments(spec: Mapping[str, Any], setting: str, target: str, episodes: int) -> list[str]:
    """The arguments of `residual-rl` that evaluate a run or the task's base policy in a setting, without the
    file."""
    return ["eval", target, "--n-episodes", str(episodes), *spec["settings"][setting]]


def run_of(runs: Path, row: str) -> RunFolder:
    """The run folder of a row."""
    return RunFolder(runs / row.replace(" ", "-"))


def file_of(runs: Path, policy: str, setting: str) -> Path:
    """The evaluation of a row or a controller in a setting."""
    return runs / "evaluations" / f"{policy.replace(' ', '-')}-{setting}.json"


def collect(spec: Mapping[str, Any], runs: Path) -> dict[str, Any]:
    """The results of all rows and controllers that are evaluated in all settings."""
    commands = {
        row: shlex.join(["residual-rl", "train", *train_arguments(spec, row), "--seed", str(spec["seed"])])
        for row in flags_by_row(spec)
        if is_finished(run_of(runs, row).path)
    }
    evaluations: dict[str, dict[str, Any]] = {}
    for policy in [*commands, *spec["controllers"]]:
        files = {setting: file_of(runs, policy, setting) for setting in spec["settings"]}
        if all(file.exists() for file in files.values()):
            evaluations[policy] = {
                setting: json.loads(file.read_text(encoding="utf-8")) for setting, file in files.items()
            }
    missing: Sequence[str] = [
        name for name in [*flags_by_row(spec), *spec["controllers"]] if name not in evaluations
    ]
    return {
        "machine": machine(),
        "commands": commands,
        "settings": spec["settings"],
        "missing": missing,
        "policies": results_of(evaluations),
    }


if __name__ == "__main__":
    main()
