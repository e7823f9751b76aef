"""Check that a refactoring changes no result: train and evaluate small runs, hash them, compare the hashes.

    python benchmarks/same_results.py --output before.json
    python benchmarks/same_results.py --compare before.json

The command line trains and evaluates each run in separate processes, with seed 1 and one thread. All of
them take about five minutes of CPU time. Three things are hashed: the weights in the run folder, the metrics
of each step except `time/…`, and the values of each evaluated episode (for demonstrations, the stored
arrays). A series is a tensor, a metric over all steps, or an episode metric over all seeds. A hash is made of
the digests of all series in sorted order, so it does not depend on their names. The file keeps the digests by
name, and a comparison lists the series that differ. The exit code is 1 if a result differs or a run fails.

Compare on one machine only, with the same package versions: rounding depends on the processor and on the
libraries. The package under test is the one that `import residual_rl` finds; to test a checkout that is not
installed, set PYTHONPATH to its `src`. ManiSkill's run is skipped where `mani_skill` is not installed. To
run it:

    .venv-maniskill/bin/python benchmarks/same_results.py --only maniskill --output FILE
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import os
import resource
import string
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

CLI = [sys.executable, "-m", "residual_rl.cli.main"]
KINDS = ("weights", "metrics", "episodes")
STAMP = ("git", "machine", "python", "packages")
PACKAGES = ("torch", "numpy", "scipy", "mujoco", "gymnasium", "mani_skill", "sapien")
Series = dict[str, str]
"""Digest and mean of the values, by name."""

_TRAIN = "train so101-paper --output-dir {folder} --seed 1 --num-threads 1 --eval-episodes 8 "
_STARTS = "--learning-starts 256 --warmup-steps 512 --actor-starts 512 "
_OFF_POLICY = "--num-envs 16 --eval-freq 0 --batch-size 128 " + _STARTS
_IMITATE = (
    "imitate {demos}/demos.h5 --out {folder} --seed 1 --torch-threads 1 --num-threads 1 --total-steps 200 "
    "--batch-size 64 --log-freq 50 --val-freq 100 --eval-freq 200 --eval-episodes 8 --eval-share 1 "
)
_EVAL = "eval {folder} --model final --n-episodes 16 --num-threads 1 --output {folder}.eval.json "
_EVAL_BASE = "eval so101-paper --n-episodes 16 --num-threads 1 --output {folder}.eval.json --base-policy "


@dataclass(frozen=True)
class Run:
    """Commands: `{folder}` is the run's own folder, `{NAME}` that of an earlier run."""

    name: str
    train: str = ""
    evaluate: str = ""
    package: str = ""
    """A package without which it is skipped."""


RUNS = (
    Run("ppo", _TRAIN + "--total-timesteps 8192 --eval-freq 4096", _EVAL + "--compare-base"),
    Run("sac", _TRAIN + _OFF_POLICY + "--learner sac --total-timesteps 4096 --utd 0.5", _EVAL),
    Run("td3", _TRAIN + _OFF_POLICY + "--learner td3 --total-timesteps 2048 --utd 0.5", _EVAL),
    Run(
        "policy_decorator",
        _TRAIN + _OFF_POLICY + "--learner policy-decorator --chunk whole --total-timesteps 4096 "
        "--prog-explore 2048 --reward-mode sparse --reward-success 1",
        _EVAL,
    ),
    Run(
        "demos",
        "demos collect so101-paper --policy oracle --n-episodes 10 --num-threads 1 --out {folder}/demos.h5",
    ),
    Run("flow", _IMITATE + "--algo flow", _EVAL_BASE + "il --il-checkpoint {folder}"),
    Run("diffusion", _IMITATE + "--algo diffusion", _EVAL_BASE + "il --il-checkpoint {folder}"),
    Run("bc", _IMITATE + "--algo bc --hidden-sizes 64 64", _EVAL_BASE + "il --il-checkpoint {folder}"),
    Run(
        "adaptive",
        _TRAIN + "--total-timesteps 4096 --eval-freq 0 --adaptive uncertainty --residual-scale-start 0.1 "
        "--base-policy hybrid --base.policies jacobian il --base.settings 1.checkpoint={flow} "
        "--base.mode ensemble",
        _EVAL,
    ),
    Run(
        "chunks",
        _TRAIN + "--num-envs 16 --eval-freq 0 --learner sac --chunk whole --base-policy il "
        "--residual-scale 0.6 --il-checkpoint {flow} --total-timesteps 4096 --batch-size 128 "
        "--learning-starts 64 --warmup-steps 128 --actor-starts 64 --demos {demos}/demos.h5 "
        "--demo-share 0.25 --obs-keys state",
        _EVAL,
    ),
    Run("run_as_base", evaluate=_EVAL_BASE + "model --model-path {ppo}/final_model"),
    Run("adaptive_run_as_base", evaluate=_EVAL_BASE + "model --model-path {adaptive}/final_model"),
    Run(
        "maniskill",
        "train maniskill --env-id PushCube-v1 --base-policy ik --output-dir {folder} --seed 1 --num-envs 8 "
        "--num-steps 64 --num-threads 1 --num-workers 1 --total-timesteps 2048 --eval-freq 0 "
        "--eval-episodes 8",
        _EVAL,
        package="mani_skill",
    ),
)


def main() -> int:
    """Run or read, write, compare."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--output", type=Path, help="file to write the results to")
    parser.add_argument("--compare", type=Path, metavar="BEFORE", help="earlier results to compare with")
    parser.add_argument("--results", type=Path, metavar="AFTER", help="compare these and run nothing")
    parser.add_argument("--only", nargs="+", choices=[run.name for run in RUNS], help="and those they need")
    parser.add_argument("--work-dir", type=Path, help="empty folder that keeps the runs")
    options = parser.parse_args()
    if not (options.output or options.compare):
        parser.error("nothing to do with the results: give --output or --compare")
    if options.results and not options.compare:
        parser.error("--results needs --compare")
    if options.work_dir and options.work_dir.is_dir() and any(options.work_dir.iterdir()):
        parser.error(f"--work-dir {options.work_dir} is not empty; choose another")
    if options.output and not options.output.absolute().parent.is_dir():
        parser.error(f"--output {options.output}: make its folder first")
    before = _read(options.compare, parser) if options.compare else None
    console = Console()
    if options.results:
        results = _read(options.results, parser)
    elif options.work_dir:
        results = run_all(options.only, options.work_dir, console)
    else:
        with tempfile.TemporaryDirectory() as folder:
            results = run_all(options.only, Path(folder), console)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    failed = any("failed" in result for result in results["runs"].values())
    same = compare(before, results, console) if before else True
    return 1 if failed or not same else 0


def _read(file: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Results that this script wrote."""
    try:
        results: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        parser.error(f"cannot read {file}, which should be a file that --output wrote: {error}")
    return results


# --- running ---


def run_all(only: list[str] | None, work: Path, console: Console) -> dict[str, Any]:
    """Results by run, with the machine and versions."""
    names = {run.name for run in RUNS} if only is None else _with_needs(only)
    results: dict[str, Any] = {}
    for run in RUNS:
        if run.name not in names:
            continue
        if run.package and importlib.util.find_spec(run.package) is None:
            results[run.name] = {"skipped": f"{run.package} is not installed"}
        else:
            results[run.name] = _run(run, work)
        result = results[run.name]
        console.print(f"{run.name:<20}  {_line(result)}", highlight=False, markup=False, soft_wrap=True)
    return {**_stamp(work), "runs": results}


def _line(result: dict[str, Any]) -> str:
    """A result on one line."""
    if "details" not in result:
        return f"failed: {result['failed']}" if "failed" in result else f"skipped: {result['skipped']}"
    hashes = "  ".join(f"{kind} {result[kind]}" for kind in KINDS if result[kind])
    return f"{result['cpu_seconds']:4.0f} CPU-s  {hashes}"


def _with_needs(names: Iterable[str]) -> set[str]:
    """These runs and all that they use."""
    needed: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        needed.add(name)
        run = next(run for run in RUNS if run.name == name)
        fields = {field for _, field, _, _ in string.Formatter().parse(run.train + run.evaluate) if field}
        waiting += fields - needed - {"folder"}
    return needed


def _run(run: Run, work: Path) -> dict[str, Any]:
    """Train and evaluate, then hash the results."""
    folder = work.resolve() / run.name
    folders = {other.name: folder.parent / other.name for other in RUNS} | {"folder": folder}
    before = _cpu_seconds()
    for command in (run.train, run.evaluate):
        if not command:
            continue
        arguments = [part.format_map(folders) for part in command.split()]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*CLI, *arguments], env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            return {"failed": f"{arguments[0]} exited with {done.returncode}: {lines[-1]}"}
    details = {
        "weights": dict(_weights(folder)),
        "metrics": dict(_metrics(folder / "metrics.jsonl")),
        "episodes": dict(_episodes(folder.with_suffix(".eval.json"))) | dict(_demos(folder / "demos.h5")),
    }
    hashes = {kind: _hash(series) if series else None for kind, series in details.items()}
    return {**hashes, "cpu_seconds": round(_cpu_seconds() - before, 1), "details": details}


def _cpu_seconds() -> float:
    """CPU time [s] of the commands so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _stamp(work: Path) -> dict[str, Any]:
    """Git state, machine and versions, as a run's folder has them."""
    for file in sorted(work.glob("*/versions.json")):
        versions = json.loads(file.read_text())
        versions["packages"] = {name: versions["packages"].get(name) for name in PACKAGES}
        return {key: versions[key] for key in STAMP}
    return dict.fromkeys(STAMP)


# --- hashing ---


def _weights(folder: Path) -> Iterator[tuple[str, str]]:
    """Every tensor of the models in a run folder; training states are not models."""
    for file in sorted(folder.rglob("*.safetensors")):
        name = file.relative_to(folder)
        if name.parts[0] in ("checkpoints", "replay"):
            continue
        for key, tensor in load_file(file).items():
            yield f"{name}: {key}", _array_digest(tensor)


def _metrics(file: Path) -> Iterator[tuple[str, str]]:
    """Every metric over all steps at which it was logged."""
    series: dict[str, list[tuple[int, float | None]]] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        row = json.loads(line)
        for name, value in row.items():
            if name != "step" and not name.startswith("time/"):
                series.setdefault(name, []).append((row["step"], value))
    for name, values in series.items():
        yield name, _digest(json.dumps(values).encode(), [value for _, value in values])


def _episodes(file: Path) -> Iterator[tuple[str, str]]:
    """Every metric of every evaluated policy over all episode seeds."""
    policies = json.loads(file.read_text())["policies"] if file.exists() else {}
    for policy, metrics in policies.items():
        for name, metric in metrics.items():
            values = metric["per_episode"]
            yield f"{policy}: {name}", _digest(json.dumps(values, sort_keys=True).encode(), values.values())


def _demos(file: Path) -> Iterator[tuple[str, str]]:
    """Every array of every stored episode."""
    if not file.exists():
        return
    arrays: Series = {}

    def add(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = _array_digest(item[()])

    with h5py.File(file) as opened:
        opened.visititems(add)
    yield from arrays.items()


def _array_digest(array: np.ndarray) -> str:
    content = f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes()
    return _digest(content, array.astype(np.float64).ravel().tolist())


def _digest(content: bytes, values: Iterable[float | None]) -> str:
    """Twelve hex digits of SHA-256, and the mean, which shows how far two series are apart."""
    numbers = [value for value in values if value is not None]
    mean = math.fsum(numbers) / len(numbers) if numbers else math.nan
    return f"{hashlib.sha256(content).hexdigest()[:12]} mean {mean:.9g}"


def _hash(series: Series) -> str:
    """One hash of all series, whatever their names and their order."""
    return hashlib.sha256("\n".join(sorted(series.values())).encode()).hexdigest()[:12]


# --- comparing ---


def compare(before: dict[str, Any], after: dict[str, Any], console: Console) -> bool:
    """Print a comparison; returns whether all series that both results contain are equal."""
    # Other machines and other packages round differently.
    for key in ("machine", "python", "packages"):
        known = before[key] and after[key]
        if known and _comparable(before[key]) != _comparable(after[key]):
            console.print(f"[yellow]the results have a different {key}:[/] {before[key]} and {after[key]}")
    table = Table("run", *KINDS)
    notes: list[str] = []
    verdicts: list[bool] = []
    for name, result in after["runs"].items():
        # A run that one side lacks is listed, but not compared.
        earlier = before["runs"].get(name, {"skipped": "not in the earlier results"})
        missing = next((side for side in (result, earlier) if "details" not in side), None)
        if missing:
            table.add_row(name, "not compared", "", "")
            notes.append(f"{name}: {missing.get('failed') or missing['skipped']}")
            continue
        # The hashes decide; the names explain the difference.
        cells = []
        for kind in KINDS:
            same = earlier[kind] == result[kind]
            verdicts.append(same)
            cells.append("–" if same and result[kind] is None else "equal" if same else "[red]different[/]")
            changes = _changes(earlier["details"][kind], result["details"][kind])
            notes += [f"{name}, {kind}: {change}" for change in changes]
        table.add_row(name, *cells)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    if not verdicts:
        console.print("no run is in both results")
    return bool(verdicts) and all(verdicts)


def _comparable(stamp: Any) -> Any:
    """The part of a machine's description that does not change when it restarts."""
    if isinstance(stamp, dict) and "cpu" in stamp:
        return {key: stamp[key] for key in ("cpu", "cores")}
    return stamp


def _changes(before: Series, after: Series) -> list[str]:
    """One line for each series that has changed, is missing or is new."""
    changed = [name for name in before if name in after and before[name] != after[name]]
    changes = [f"{name} was {before[name]}, is {after[name]}" for name in changed]
    gone = {name: digest for name, digest in before.items() if name not in after}
    new = {name: digest for name, digest in after.items() if name not in before}
    unmatched = Counter(gone.values()) & Counter(new.values())
    for side, series in (("is gone", gone), ("is new", new)):
        left = Counter(unmatched)
        for name, digest in series.items():
            if left[digest]:
                left[digest] -= 1
            else:
                changes.append(f"{name} {side}: {digest}")
    if unmatched:
        changes.append(f"{unmatched.total()} series with other names and the same values")
    return changes


if __name__ == "__main__":
    sys.exit(main())
