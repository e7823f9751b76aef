"""A table of base policies trained on 20, 50 and 200 demonstrations, and of residuals on some of them.

    python benchmarks/imitation_bases.py --residual bc-20 bc-20-noisy

It collects the demonstrations, trains and evaluates each base, trains residuals with two seeds on the bases
of `--residual`, and writes docs/results/imitation-bases.json. Finished parts are reused and interrupted ones
are resumed, so the work can be spread over time and machines: rows of bases without runs on this machine are
kept. `--bases` selects bases. The name of a base is an algorithm and a number of demonstrations, followed by
`noisy` if noise was added to the actions (`demos collect --noise 0.3`). ACT needs LeRobot, which has a
separate environment: add `--lerobot-python .venv-lerobot/bin/python`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from residual_rl.evaluation.formatting import interval_text, value_text
from residual_rl.utils.files import make_folder, write_json
from residual_rl.utils.provenance import git_state, machine
from resumable import imitate, is_finished, make_file, run_cli

ALGOS = ("bc", "flow", "diffusion", "act")
SIZES = (20, 50, 200)
TASK = "so101-paper"
BUDGET = ("--total-steps", "6000", "--torch-threads", "1")
"""Flags for all algorithms; training takes minutes on one core."""
BATCH_SIZES = {"act": "32"}
"""Batch sizes other than 128: a gradient step of a transformer takes several times as long."""
RESIDUAL = (
    "--total-timesteps",
    "200000",
    "--eval-freq",
    "8192",
    "--num-threads",
    "1",
    "--num-steps",
    "128",
    "--minibatch-size",
    "512",
)
RESIDUAL += ("--learning-rate", "3e-4", "--obs-keys", "state", "base_action", "joint_target")
RESIDUAL += ("--learner", "ppo", "--residual-scale", "0.6")
"""Flags for all bases. Batches are larger and updates fewer than PPO's defaults, because noise easily
disturbs a policy from demonstrations. Observing the joint targets shows how hard the finger presses."""


def main() -> None:
    """Run the missing parts, write the results and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bases",
        nargs="*",
        default=[f"{algo}-{size}" for algo in ALGOS for size in SIZES],
        help="e.g. flow-20",
    )
    parser.add_argument("--residual", nargs="*", default=[], help="bases to learn residuals on, e.g. flow-20")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/bases"))
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument(
        "--lerobot-python", default=None, help="Python of an environment with LeRobot, for act"
    )
    parser.add_argument(
        "--table-only", action="store_true", help="run nothing, only aggregate existing results"
    )
    options = parser.parse_args()
    make_folder(options.runs)
    if not options.table_only:
        for base in options.bases:
            _base(options, base)
        for base in options.residual:
            _residual(options, base)
    result = _aggregate(options)
    make_folder(options.output)
    write_json(options.output / "imitation-bases.json", result)
    Console().print(_table(result))


def _demonstrations(options: argparse.Namespace, noisy: bool) -> Path:
    path: Path = options.runs / ("noisy.h5" if noisy else "demos.h5")
    noise = ["--noise", "0.3"] if noisy else []
    size = str(max(SIZES))
    make_file(path, ["demos", "collect", TASK, "--policy", "oracle", *noise, "--n-episodes", size])
    return path


def _base(options: argparse.Namespace, base: str) -> None:
    algo, size, *noisy = base.split("-")
    model, evaluation_file = options.runs / base, options.runs / f"{base}.json"
    python = _python(options, algo)
    if python is None:
        print(f"{base}: skipped; it needs the Python of an environment with LeRobot, --lerobot-python")
        return
    if not is_finished(model):
        batch_size = BATCH_SIZES.get(algo, "128")
        how = ["--algo", algo, "--n-episodes", size, "--batch-size", batch_size, *BUDGET]
        imitate(model, _demonstrations(options, bool(noisy)), how, python)
    if not evaluation_file.exists():
        flags = [*_base_flags(options, base), "--n-episodes", "200", "--output", str(evaluation_file)]
        run_cli("eval", TASK, *flags, python=python)


def _residual(options: argparse.Namespace, base: str) -> None:
    """Run `train_seeds.py` on the base, which resumes, evaluates and aggregates."""
    python = _python(options, base.split("-")[0])
    assert python is not None, "needs the Python of an environment with LeRobot, --lerobot-python"
    command = [
        python,
        str(Path(__file__).with_name("train_seeds.py")),
        f"{TASK}-{base}",
        "--seeds",
        *map(str, options.seeds),
    ]
    command += ["--runs", str(options.runs), "--output", str(options.output)]
    subprocess.run([*command, "--", TASK, *_base_flags(options, base), *RESIDUAL], check=True)


def _base_flags(options: argparse.Namespace, base: str) -> list[str]:
    policy = "lerobot" if base.startswith("act") else "il"
    return ["--base-policy", policy, "--il-checkpoint", str(options.runs / base)]


def _python(options: argparse.Namespace, algo: str) -> str | None:
    python: str | None = options.lerobot_python if algo == "act" else sys.executable
    return python


def _aggregate(options: argparse.Namespace) -> dict[str, Any]:
    before = options.output / "imitation-bases.json"
    rows: dict[str, Any] = json.loads(before.read_text())["bases"] if before.exists() else {}
    bases = {}
    for base in [f"{algo}-{size}{noisy}" for noisy in ("", "-noisy") for algo in ALGOS for size in SIZES]:
        evaluation_file = options.runs / f"{base}.json"
        if not evaluation_file.exists():
            if base in rows:
                bases[base] = rows[base]
            continue
        success = json.loads(evaluation_file.read_text())["policies"]["base"]["success_once"]
        summary = json.loads((options.runs / base / "training_summary.json").read_text())
        git = json.loads((options.runs / base / "versions.json").read_text())["git"]
        row = {
            "success_once": {key: success[key] for key in ("mean", "interval", "n")},
            "training": summary,
            "git": git,
        }
        residual = options.output / f"{TASK}-{base}.json"
        if residual.exists():
            row["residual"] = json.loads(residual.read_text())["success_once"]["residual"]
        bases[base] = row
    return {"task": TASK, "git": git_state()[0], "machine": machine(), "bases": bases}


def _table(result: dict[str, Any]) -> Table:
    table = Table(
        "base",
        "base alone",
        "base + residual",
        title=f"{result['task']}: success, 200 episodes",
        title_justify="left",
    )
    for name, row in result["bases"].items():
        cells = []
        for rate in (row["success_once"], row.get("residual", {}).get("pooled")):
            interval = interval_text("success_once", rate["interval"]) if rate else ""
            cells.append(f"{value_text('success_once', rate['mean'])} {interval}" if rate else "")
        table.add_row(name, *cells)
    return table


if __name__ == "__main__":
    main()
