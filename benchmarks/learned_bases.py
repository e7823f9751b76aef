"""Residuals over learned bases: make the bases, train, evaluate on fresh episodes.

    python benchmarks/learned_bases.py                      # the rows of learned_bases.json
    python benchmarks/learned_bases.py --spec benchmarks/other_environments.json
    python benchmarks/learned_bases.py --defaults-before    # the former default learners, for comparison
    python benchmarks/learned_bases.py --ablations          # rows with one setting changed
    python benchmarks/learned_bases.py --table-only         # the results so far

All rows over learned bases are trained with the same command, `residual-rl train` with the flags of the task,
the base, the number of steps and the seed. Each best model is evaluated together with its base on episodes
that training has not used (200 if the spec does not say otherwise), and each evaluation during training is
compared with that of the base. Bases are trained on demonstrations, are runs of this project, or are experts
with a bias.

It writes learned-bases.json and learned-bases.png, with the name of the spec, and prints the table. Groups of
many rows are shown in learned-bases-gains.png. Finished parts are reused and interrupted ones are resumed. A
run that another process is training is skipped, so the same command can be started once per core (set
OMP_NUM_THREADS=1). Runs that are not on this machine keep their earlier results.

LeRobot and ManiSkill have environments of their own, whose Pythons are started from --environments.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from learned_bases_results import Results, base_entry, plot, plot_gains, run_entry, tables
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import make_folder, write_json
from residual_rl.utils.provenance import machine
from resumable import CommandError, evaluate_run, exclusive, imitate, is_finished, make_file, train_run

ROOT = Path(__file__).parents[1]
EPISODES = 200
PARTS = ("rows", "defaults_before", "ablations")
Spec = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A training run of the benchmark."""

    part: str
    row: str
    variant: str
    """Name of the changed settings; empty in the part `rows`."""
    seed: int
    steps: int
    episodes: int
    """Number of fresh episodes."""
    flags: tuple[str, ...]
    """Flags of `train` in addition to those of the task, the base, the steps and the seed."""

    @property
    def name(self) -> str:
        """The name of its run folder."""
        words = [self.row, *([self.part, self.variant] if self.variant else []), str(self.seed)]
        return "-".join(words).replace(" ", "-").replace("_", "-")


def main() -> None:
    """Train and evaluate what is missing, write the results and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--defaults-before", dest="part", action="store_const", const="defaults_before")
    parts.add_argument("--ablations", dest="part", action="store_const", const="ablations")
    parser.set_defaults(part="rows")
    parser.add_argument("--rows", nargs="+", help="rows to run, by default all")
    parser.add_argument("--seeds", type=int, nargs="+", help="training seeds to run, by default all")
    parser.add_argument("--variants", nargs="+", help="changed settings to run, by default all")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--steps", type=int, help="env steps of each run, for a trial")
    parser.add_argument("--episodes", type=int, help="fresh episodes of each evaluation, for a trial")
    parser.add_argument(
        "--environments",
        type=Path,
        default=ROOT,
        help="folder with .venv, .venv-lerobot and .venv-maniskill",
    )
    parser.add_argument("--spec", type=Path, default=Path(__file__).with_suffix(".json"), help="the rows")
    parser.add_argument("--runs", type=Path, help="by default runs/ and the name of the spec")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    spec, name = read_spec(options.spec), options.spec.stem.replace("_", "-")
    options.runs = options.runs or Path("runs", name)
    for row in options.rows or ():
        if row not in spec["rows"]:
            parser.error(f"unknown row {row!r}: choose from {', '.join(spec['rows'])}")

    # Run what is missing. A failure does not keep the other runs from being trained.
    failed = []
    if not options.table_only:
        for cell in _selected(cells(spec, options.part, options.steps, options.episodes), options):
            try:
                _run(spec, cell, options)
            except CommandError:
                failed.append(cell.name)

    # Collect the results of all parts, save and print.
    file = options.output / f"{name}.json"
    results = collect(spec, options, json.loads(file.read_text(encoding="utf-8")) if file.exists() else {})
    make_folder(options.output)
    write_json(file, results)
    plot(spec, results, file.with_suffix(".png"))
    plot_gains(spec, results, file.with_name(f"{name}-gains.png"))
    console = Console(width=170)  # also where the output is a file
    for table in tables(spec, results):
        console.print(table)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def read_spec(path: Path) -> Spec:
    """The bases and rows in a file.

    Each of its `templates` has entries of `tasks`, `demos`, `bases` and `rows`. They are added once for each
    of its `values`, which replaces `{}` in their names and texts.
    """
    spec: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for template in spec.pop("templates", []):
        for value in template["values"]:
            entries = json.loads(json.dumps(template).replace("{}", value))
            for kind in ("tasks", "demos", "bases", "rows"):
                spec.setdefault(kind, {}).update(entries.get(kind, {}))
    return spec


def cells(spec: Spec, part: str, steps: int | None = None, episodes: int | None = None) -> Iterator[Cell]:
    """The runs of a part, all rows with their first seed before any with the second.

    `steps` and `episodes` replace their numbers.
    """
    if part not in spec:
        return
    group = spec[part]
    if part == "rows":
        settings = [(row, "", values["steps"], values["seeds"], ()) for row, values in group.items()]
    else:
        settings = [
            (row, variant, group["steps"], group["seeds"], tuple(flags))
            for row in group["rows"]
            for variant, flags in group["variants"].items()
        ]
    for index in range(max((len(seeds) for _, _, _, seeds, _ in settings), default=0)):
        for row, variant, row_steps, seeds, flags in settings:
            if index < len(seeds):
                count = episodes or spec["rows"][row].get("episodes", spec.get("episodes", EPISODES))
                yield Cell(part, row, variant, seeds[index], steps or row_steps, count, flags)


def _selected(all_cells: Iterator[Cell], options: argparse.Namespace) -> Iterator[Cell]:
    for cell in all_cells:
        if (
            (options.rows is None or cell.row in options.rows)
            and (options.seeds is None or cell.seed in options.seeds)
            and (options.variants is None or cell.variant in options.variants)
        ):
            yield cell


def train_arguments(spec: Spec, cell: Cell, runs: Path) -> list[str]:
    """The arguments of `residual-rl train` for a run, without seed and folder.

    `{demos}` in its flags stands for the demonstrations that its base was made from.
    """
    row = spec["rows"][cell.row]
    base = spec["bases"][row["base"]] if "base" in row else {}
    words, flags = list(spec["tasks"][_task(spec, row)]["flags"]), cell.flags
    if "train" in base:
        words += ["--base-policy", "model", "--model-path", str(base_folder(row["base"], runs))]
    elif base:
        flags = tuple(flag.format(demos=demos_file(base["demos"], runs)) for flag in flags)
        policy = base.get("policy", "il")
        words += ["--base-policy", policy, "--il-checkpoint", str(base_folder(row["base"], runs))]
    words += row.get("train", [])
    if "demos" in row:
        words += ["--demos", str(demos_file(row["demos"], runs))]
    return [*words, "--total-timesteps", str(cell.steps), *flags]


def collect_arguments(spec: Spec, demos: str) -> list[str]:
    """The arguments of `residual-rl` that collect demonstrations, without the file."""
    made = spec["demos"][demos]
    return ["demos", "collect", *spec["tasks"][made["task"]]["flags"], *made["collect"]]


def demos_file(demos: str, runs: Path) -> Path:
    """The file of demonstrations."""
    return runs / "demos" / f"{demos}.h5"


def base_folder(base: str, runs: Path) -> Path:
    """The folder of a base's training."""
    return runs / "bases" / base


def base_arguments(spec: Spec, base: str) -> list[str]:
    """The arguments of `residual-rl train` for a base that is a run, without seed and folder."""
    made = spec["bases"][base]
    flags = spec["tasks"][made["task"]]["flags"]
    return [*flags, *made["train"], "--total-timesteps", str(made["steps"])]


def _task(spec: Spec, row: Mapping[str, Any]) -> str:
    """The name of a row's task: its own, that of its base, or that of its base's demonstrations."""
    source = row if "task" in row else spec["bases"][row["base"]]
    return str(source["task"] if "task" in source else spec["demos"][source["demos"]]["task"])


def _run(spec: Spec, cell: Cell, options: argparse.Namespace) -> None:
    """Make the base, train and evaluate, each unless it is done."""
    row, run = spec["rows"][cell.row], RunFolder(options.runs / cell.name)
    task_python = _python(spec["tasks"][_task(spec, row)]["python"], options)
    base = spec["bases"][row["base"]] if "base" in row else {}
    python = _python(base["python"], options) if "python" in base else task_python
    if run.held:
        print(f"{cell.name}: skipped, another process is training it")
        return

    # Demonstrations and base.
    for demos in {base.get("demos"), row.get("demos")} - {None}:
        make_file(demos_file(demos, options.runs), collect_arguments(spec, demos), task_python)
    if "train" in base:
        trained = RunFolder(base_folder(row["base"], options.runs))
        with exclusive(trained.path):
            train_run(trained, base_arguments(spec, row["base"]), base["seed"], python)
    elif base:
        model = base_folder(row["base"], options.runs)
        imitate(model, demos_file(base["demos"], options.runs), base["imitate"], python)

    # Training and evaluation.
    if "continues" in row and not run.config_file.exists():
        source = RunFolder(options.runs / f"{row['continues']}-{cell.seed}")
        if not is_finished(source.path):
            print(f"{cell.name}: skipped, since {source.path.name}, which it continues, has not finished")
            return
        extend_run(source, run, cell.steps)
    train_run(run, train_arguments(spec, cell, options.runs), cell.seed, python)
    evaluate_run(run, cell.episodes, "--compare-base", python=python)


def _python(environment: str, options: argparse.Namespace) -> str:
    path: Path = options.environments / environment / "bin" / "python"
    if not path.exists():
        print(f"{path} does not exist: create it with make, or name its folder with --environments")
        raise CommandError(1)
    return str(path)


def extend_run(source: RunFolder, run: RunFolder, steps: int) -> None:
    """Copy the finished run `source` to `run`, such that training it goes on up to `steps`."""
    with exclusive(run.path):
        if run.path.exists():
            return
        new = RunFolder(run.path.with_name(f".{run.path.name}.new"))
        shutil.rmtree(new.path, ignore_errors=True)
        # not what says that it has finished, and not its evaluation
        finished = (new.summary_file.name, new.final_model.name, new.eval_file.name)
        shutil.copytree(source.path, new.path, ignore=shutil.ignore_patterns(*finished))
        config = json.loads(new.config_file.read_text(encoding="utf-8"))
        config["run"]["total_timesteps"] = steps
        write_json(new.config_file, config)
        new.path.rename(run.path)


def collect(spec: Spec, options: argparse.Namespace, earlier: Results) -> Results:
    """The results of all runs and bases on this machine, and `earlier` ones of the others."""
    # Bases, with their commands.
    bases = {}
    for name in spec["bases"]:
        model = base_folder(name, options.runs)
        before = earlier.get("bases", {}).get(name)
        if is_finished(model):
            bases[name] = base_entry(model, _base_commands(spec, name, options.runs))
            if before and before["sha256"] != bases[name]["sha256"]:
                print(f"base {name} differs from that of the earlier results, which were made elsewhere")
        elif before:
            bases[name] = before

    # Runs. One that has not finished here does not replace one that has elsewhere.
    runs = {}
    for part in PARTS:
        for cell in cells(spec, part, options.steps):
            run, before = RunFolder(options.runs / cell.name), earlier.get("runs", {}).get(cell.name)
            is_evaluated = is_finished(run.path) and run.eval_file.exists()
            if run.eval_results.exists() and (is_evaluated or not (before and before["finished"])):
                identity = {"part": part, "row": cell.row, "variant": cell.variant, "seed": cell.seed}
                command = _command(["train", *train_arguments(spec, cell, options.runs)])
                goal = spec["rows"][cell.row].get("goal")
                runs[cell.name] = identity | {"command": command} | run_entry(run, goal)
            elif before:
                runs[cell.name] = before
    return {"machine": machine(), "bases": bases, "runs": runs}


def _base_commands(spec: Spec, name: str, runs: Path) -> list[str]:
    """The commands that make a base."""
    base, folder = spec["bases"][name], ["--output-dir", str(base_folder(name, runs))]
    if "train" in base:
        return [_command(["train", *base_arguments(spec, name), "--seed", str(base["seed"]), *folder])]
    demos = str(demos_file(base["demos"], runs))
    collection = [*collect_arguments(spec, base["demos"]), "--output", demos]
    return [_command(collection), _command(["imitate", demos, *base["imitate"], *folder])]


def _command(arguments: Sequence[str]) -> str:
    return shlex.join(["residual-rl", *arguments])


if __name__ == "__main__":
    main()
