"""The report of a sweep: `report.json`, `report.md` and `report.png` in its folder, from the run folders of
its trials."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from residual_rl.evaluation.formatting import interval_text, value_text
from residual_rl.evaluation.plot_style import OTHER_COLORS, series
from residual_rl.runs.logger import read_metrics
from residual_rl.sweeps.grid import SweepCfg, Trial, read_json, state_of
from residual_rl.sweeps.ranking import Ranked, rank
from residual_rl.utils.files import replacing, write_atomically, write_json
from residual_rl.utils.provenance import git_state, machine

METRIC = "success_once"
_HEAD = ("", "point", "success [95 %]", "by seed", "difference to the first [95 %]", "")
_WORDS = {
    "finished": "Finished",
    "failed": "Failed",
    "interrupted": "Interrupted, and not ranked",
    "waiting": "Not started",
}


def write_report(sweep: SweepCfg, trials: Sequence[Trial], folder: Path) -> dict[str, Any]:
    """Write the report of the finished trials, and return the content of `report.json`.

    Raises `CheckpointError` and `WriteError`.
    """
    report = make_report(sweep, trials)
    write_json(folder / "report.json", report)
    write_atomically(folder / "report.md", "\n".join(_markdown(report, sweep)) + "\n")
    with replacing(folder / "report.png") as temporary:
        _figure(report).savefig(temporary, format="png", dpi=130, facecolor="white")
    return report


def make_report(sweep: SweepCfg, trials: Sequence[Trial]) -> dict[str, Any]:
    """The ranking of the points with a finished trial, and the state and success curve of each trial."""
    states = {trial.name: state_of(trial) for trial in trials}
    outcomes: dict[str, dict[int, dict[int, float]]] = {}
    for trial in trials:
        if states[trial.name] == "finished":
            outcomes.setdefault(trial.point, {})[trial.seed] = _episodes(trial)
    return {
        "task": sweep.task_id,
        "grid": {key: list(values) for key, values in sweep.grid.items()},
        "train": list(sweep.train),
        "seeds": list(sweep.seeds),
        "n_episodes": sweep.n_episodes,
        "first_eval_seed": sweep.first_eval_seed,
        "git": git_state()[0],
        "machine": machine(),
        "ranking": [_plain(ranked) for ranked in rank(outcomes)] if outcomes else [],
        "trials": [_trial(trial, states[trial.name]) for trial in trials],
    }


def ranking_table(report: Mapping[str, Any]) -> Table:
    """The ranking as a table of rich."""
    title = f"{report['task']}: success on {report['n_episodes']} episodes for each seed"
    table = Table(*_HEAD, title=title, title_justify="left")
    for row in _rows(report):
        table.add_row(*row)
    return table


def _episodes(trial: Trial) -> dict[int, float]:
    values = read_json(trial.run.eval_file)["policies"]["residual"][METRIC]["per_episode"]
    return {int(seed): float(value) for seed, value in values.items()}


def _plain(ranked: Ranked) -> dict[str, Any]:
    return {
        "point": ranked.point,
        "success": ranked.success.to_json(),
        "per_seed": ranked.per_seed,
        "tied_with_first": ranked.tied,
        "difference_to_first": None if ranked.difference is None else ranked.difference.to_json(),
    }


def _trial(trial: Trial, state: str) -> dict[str, Any]:
    rows = read_metrics(trial.run.metrics_file) if trial.run.metrics_file.exists() else []
    steps, success = series(rows, "eval/success_rate")
    summary = read_json(trial.run.summary_file)
    return {
        "name": trial.name,
        "point": trial.point,
        "seed": trial.seed,
        "state": state,
        "reason": trial.failure_file.read_text(encoding="utf-8").strip() if state == "failed" else None,
        "run": str(trial.run.path.relative_to(trial.sweep)),
        **{key: summary.get(key) for key in ("steps", "wall_time", "step_to_95")},
        "curve": [list(pair) for pair in zip(steps, success, strict=True)],
    }


def _rows(report: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for place, ranked in enumerate(report["ranking"], 1):
        difference = ranked["difference_to_first"]
        mark = "" if place == 1 or not ranked["tied_with_first"] else "tied with the first"
        text = "–" if difference is None else _text(difference, sign=True)
        by_seed = ", ".join(f"{seed}: {100 * rate:.1f}" for seed, rate in ranked["per_seed"].items())
        rows.append([str(place), ranked["point"], _text(ranked["success"]), by_seed, text, mark])
    return rows


def _text(summary: Mapping[str, Any], sign: bool = False) -> str:
    return f"{value_text(METRIC, summary['mean'], sign)} {interval_text(METRIC, summary['interval'])}".strip()


def _markdown(report: Mapping[str, Any], sweep: SweepCfg) -> list[str]:
    grid = [word for key, values in sweep.grid.items() for word in ("--grid", f"{key}={','.join(values)}")]
    lines = [
        f"# Sweep of {report['task']}",
        "",
        (
            f"`{shlex.join(['residual-rl', 'sweep', sweep.task_id, *sweep.train, *grid])}`, training seeds"
            f" {', '.join(map(str, sweep.seeds))}; each policy was evaluated on the same {sweep.n_episodes}"
            f" episodes, which are not used in training (seeds from {sweep.first_eval_seed})."
        ),
        "",
        (
            "Points are ranked by the lower end of their interval. A point whose interval overlaps that of"
            " the first is tied with it: another"
        ),
        (
            "sweep may rank them in another order. Intervals are over training seeds and episodes;"
            " differences are paired by both."
        ),
        "",
        f"| {' | '.join(_HEAD)} |",
        f"|{'---|' * len(_HEAD)}",
        *(f"| {' | '.join(row)} |" for row in _rows(report)),
        "",
        "![success over training](report.png)",
    ]

    # List the trials that are not in the ranking.
    for state, words in _WORDS.items():
        named = [trial for trial in report["trials"] if trial["state"] == state]
        if named and state != "finished":
            lines += ["", f"{words}:", ""]
            lines += [
                f"- `{trial['name']}`{': ' + trial['reason'] if trial['reason'] else ''}" for trial in named
            ]
    return lines


def _figure(report: Mapping[str, Any]) -> Any:
    """Plot success over training: a thin line for each trial, a thick one for the mean of a point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.5), layout="constrained")
    axes = figure.subplots()
    colors = ("#2a7de1", "#e8862e", *OTHER_COLORS, "#8b919a")
    for i, point in enumerate(dict.fromkeys(trial["point"] for trial in report["trials"])):
        # Draw each trial.
        color = colors[i % len(colors)]
        curves = [
            dict(trial["curve"]) for trial in report["trials"] if trial["point"] == point and trial["curve"]
        ]
        for curve in curves:
            axes.plot(
                list(curve), [100 * rate for rate in curve.values()], color=color, linewidth=0.7, alpha=0.45
            )

        # Draw the mean over the steps at which all trials of the point were evaluated.
        common = sorted(set.intersection(*map(set, curves))) if curves else []
        means = [100 * sum(curve[step] for curve in curves) / len(curves) for step in common]
        axes.plot(common, means, "o-", color=color, markersize=3.5, linewidth=2.0, label=point)
    axes.set(
        xlabel="env steps",
        ylabel="success in evaluations during training [%]",
        ylim=(-2, 102),
        title=report["task"],
    )
    axes.legend(fontsize=8)
    return figure
