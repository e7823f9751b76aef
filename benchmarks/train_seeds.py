"""Train a task with several seeds, evaluate each run on fresh episodes, save results as JSON and a plot.

    python benchmarks/train_seeds.py residual --seeds 1 2 3 -- so101-paper --total-timesteps 250000

writes docs/results/residual.json and residual.png. Arguments after `--` are those of `residual-rl train`.
Evaluated runs are reused and interrupted ones are resumed, so a long benchmark can be spread over time.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import make_folder, write_json
from residual_rl.utils.provenance import machine
from residual_rl.utils.statistics import across_runs, proportion
from resumable import evaluate_run, train_run, training_curve


def main() -> None:
    """Train and evaluate the missing runs, and aggregate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="name of the result")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--n-episodes", type=int, default=200)
    parser.add_argument("--runs", type=Path, default=Path("runs/results"))
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("train", nargs="+", help="arguments of `residual-rl train`, after --")
    options = parser.parse_args()
    runs = [_run(options, seed) for seed in options.seeds]
    result = _aggregate(options, runs)
    make_folder(options.output)
    write_json(options.output / f"{options.name}.json", result)
    _plot(result, options.output / f"{options.name}.png")
    _print(result)


def _run(options: argparse.Namespace, seed: int) -> RunFolder:
    run = RunFolder(options.runs / f"{options.name}-{seed}")
    train_run(run, options.train, seed)
    # the others are the same for all runs
    others = ["--compare-base", "--compare-zero"] if seed == options.seeds[0] else []
    evaluate_run(run, options.n_episodes, *others)
    return run


def _aggregate(options: argparse.Namespace, runs: list[RunFolder]) -> dict[str, Any]:
    evaluations = [json.loads(run.eval_file.read_text()) for run in runs]
    summaries = [json.loads(run.summary_file.read_text()) for run in runs]
    episodes = [
        list(evaluation["policies"]["residual"]["success_once"]["per_episode"].values())
        for evaluation in evaluations
    ]
    rates = {
        "residual": {
            "per_seed": [sum(e) / len(e) for e in episodes],
            **across_runs(episodes, binary=True).to_json(),
        }
    }
    rates["residual"]["pooled"] = proportion([outcome for run in episodes for outcome in run]).to_json()
    for policy in ("base", "zero"):  # not trained, so equal in all runs: use the first
        rates[policy] = {
            key: evaluations[0]["policies"][policy]["success_once"][key] for key in ("mean", "interval", "n")
        }
    versions = json.loads((runs[0].path / "versions.json").read_text())
    return {
        "command": _command(options),
        "git": versions["git"],
        "machine": machine(),
        "packages": {
            name: versions["packages"].get(name)
            for name in ("torch", "mujoco", "mani_skill", "numpy", "gymnasium")
        },
        "task": evaluations[0]["task"],
        "seeds": options.seeds,
        "n_episodes": options.n_episodes,
        "success_once": rates,
        "evaluated_step": [evaluation["settings"]["model_step"] for evaluation in evaluations],
        "training": [
            {
                key: summary[key]
                for key in ("steps", "wall_time", "steps_per_second", "time_to_95", "step_to_95")
            }
            for summary in summaries
        ],
        "curves": [[[step, rate] for step, rate, _ in training_curve(run)] for run in runs],
    }


def _command(options: argparse.Namespace) -> str:
    """The command for this result, without the folders."""
    seeds = [str(seed) for seed in options.seeds]
    episodes = ["--n-episodes", str(options.n_episodes)]
    arguments = shlex.join([options.name, "--seeds", *seeds, *episodes, "--", *options.train])
    return f"python benchmarks/train_seeds.py {arguments}"


def _plot(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for seed, curve in zip(result["seeds"], result["curves"], strict=True):
        axes.plot([step for step, _ in curve], [100 * rate for _, rate in curve], label=f"seed {seed}")
    axes.axhline(
        100 * result["success_once"]["base"]["mean"], color="gray", linestyle="--", label="base policy"
    )
    axes.set(xlabel="env steps", ylabel="success in evaluation [%]", ylim=(-2, 102), title=result["task"])
    axes.legend()
    figure.savefig(path, dpi=110)


def _print(result: dict[str, Any]) -> None:
    print(f"{result['task']}, seeds {result['seeds']}, {result['n_episodes']} episodes each")
    for policy, rate in result["success_once"].items():
        interval = (
            ""
            if rate["interval"] is None
            else f" [{100 * rate['interval'][0]:.1f}, {100 * rate['interval'][1]:.1f}]"
        )
        per_seed = f" ({', '.join(f'{100 * r:.1f}' for r in rate['per_seed'])})" if "per_seed" in rate else ""
        print(f"  {policy:<9} {100 * rate['mean']:.1f} %{interval}{per_seed}")
        if "pooled" in rate:
            low, high = rate["pooled"]["interval"]
            print(
                f"  {'':<9} all {rate['pooled']['n']} episodes as one sample: "
                f"[{100 * low:.1f}, {100 * high:.1f}]"
            )
    for seed, training in zip(result["seeds"], result["training"], strict=True):
        reached = (
            "never"
            if training["time_to_95"] is None
            else f"after {training['time_to_95']:.0f} s, {training['step_to_95']:,} steps"
        )
        print(f"  seed {seed}: {training['steps']:,} steps in {training['wall_time']:.0f} s; 95 % {reached}")


if __name__ == "__main__":
    main()
