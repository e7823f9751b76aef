"""Results of `learned_bases.py`: what is read from a run, and the tables and curves made of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from paired import holm, p_worse, won_and_lost
from residual_rl.evaluation.formatting import interval_text, value_text
from residual_rl.runs.logger import read_metrics
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.statistics import paired_difference
from resumable import is_finished, outcomes, training_curve

LEVEL = 0.05
RATE = "success_once"
ALMOST_WORKS = 0.4
"""Success rate of a base from which on a goal is a success rate, and not a share of solved failures."""
Results = dict[str, Any]


# --- what is read -------------------------------------------------------------------------------------


def base_entry(model: Path, commands: Sequence[str]) -> Results:
    """The recipe of a base and the SHA-256 of the files of its model: of an imitation policy, or the best one
    of a run."""
    run = RunFolder(model)
    summary = json.loads(run.summary_file.read_text(encoding="utf-8"))
    found = model / summary.get("model", run.best_model.name)
    files = sorted(file for file in found.rglob("*") if file.is_file()) if found.is_dir() else [found]
    hashes = {str(file.relative_to(model)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return {"commands": list(commands), "sha256": hashes, "wall_time": summary["wall_time"]}


def run_entry(run: RunFolder, goal: Mapping[str, float] | None) -> Results:
    """The results of a run: the evaluations during training, and that of its best model if there is one."""
    checks = training_checks(outcomes(run))
    versions = json.loads((run.path / "versions.json").read_text(encoding="utf-8"))
    entry: Results = {
        "git": versions["git"],
        "curve": training_curve(run),
        "checks": checks,
        "num_worse": sum(check["p_holm"] <= LEVEL for check in checks),
        "finished": False,
    }
    if not (is_finished(run.path) and run.eval_file.exists()):
        return entry
    # The best model and its base, on fresh episodes.
    evaluation = json.loads(run.eval_file.read_text(encoding="utf-8"))
    best, base = (evaluation["policies"][name][RATE] for name in ("residual", "base"))
    best_model = comparison(list(best["per_episode"].values()), list(base["per_episode"].values()))
    best_model |= {
        "success": {key: best[key] for key in ("mean", "interval", "n")},
        "base": {key: base[key] for key in ("mean", "interval", "n")},
        "step": evaluation["settings"]["model_step"],
        "residual_scale": evaluation["settings"]["residual_scale"],
        "outcomes": "".join(str(int(value)) for value in best["per_episode"].values()),
    }
    # The training.
    summary = json.loads(run.summary_file.read_text(encoding="utf-8"))
    return entry | {
        "finished": True,
        "best_model": best_model,
        "goal_reached": goal_reached(goal, best_model, entry["curve"]),
        "steps": summary["steps"],
        "wall_time": summary["wall_time"],
        "evaluation_share": evaluation_share(run),
        "step_to_95": summary["step_to_95"],
        "deployment": summary.get("deployment"),
    }


def comparison(policy: Sequence[float], base: Sequence[float]) -> Results:
    """The comparison of a policy with its base on the same episodes; the interval is at 95 %."""
    won, lost = won_and_lost(policy, base)
    first = dict(enumerate(policy[: len(base)]))
    difference = paired_difference(first, dict(enumerate(base[: len(policy)])), binary=True)
    return {
        "episodes": len(first),
        "won": won,
        "lost": lost,
        "base_failures": sum(outcome == 0.0 for outcome in base[: len(policy)]),
        "difference": difference.to_json(),
        "p_worse": p_worse(won, lost),
    }


def training_checks(evaluations: Mapping[int, Sequence[float]]) -> list[Results]:
    """Whether the evaluations of a training are worse than the base, that is the one at step 0.

    Args:
        evaluations: outcomes of the episodes by env steps. One that stopped early is compared in the
            episodes that it has; it is then found to be worse more often than at the stated level.

    Returns:
        The comparison of each evaluation after step 0, with `p_holm` adjusted for their number.
    """
    if 0 not in evaluations:
        return []
    base = evaluations[0]
    checks = [{"step": step, **comparison(values, base)} for step, values in evaluations.items() if step > 0]
    adjusted = holm([check["p_worse"] for check in checks])
    return [check | {"p_holm": p} for check, p in zip(checks, adjusted, strict=True)]


def goal_reached(
    goal: Mapping[str, float] | None, best_model: Results, curve: Sequence[Sequence[float]]
) -> bool | None:
    """Whether a run has reached its goal; None without one.

    `success` is a success rate: of the best model or, with `by_step`, of an evaluation up to that step. With
    `failures_solved`, it is a share of the base's failures instead if the base's success rate is below
    `ALMOST_WORKS`.
    """
    if goal is None:
        return None
    if "by_step" in goal:
        reached = steps_to(curve, goal["success"])
        return reached is not None and reached <= goal["by_step"]
    if "failures_solved" in goal and best_model["base"]["mean"] < ALMOST_WORKS:
        return bool(best_model["won"] >= goal["failures_solved"] * best_model["base_failures"])
    return bool(best_model["success"]["mean"] >= goal["success"])


def evaluation_share(run: RunFolder) -> float | None:
    """Share of the wall time that evaluations took; None for a run of several sessions, whose times are
    those of the last one."""
    commands = (run.path / "command.txt").read_text(encoding="utf-8").splitlines()
    times = [row for row in read_metrics(run.metrics_file) if row.get("time/evaluation") is not None]
    if len(commands) > 1 or not times:
        return None
    return float(times[-1]["time/evaluation"] / times[-1]["time/wall"])


def steps_to(curve: Sequence[Sequence[float]], rate: float) -> int | None:
    """Env steps of the first evaluation with a success rate of at least `rate`; None if there is none.
    Evaluations that stopped early do not count."""
    complete = max((episodes for *_, episodes in curve), default=0)
    return next((int(step) for step, success, n in curve if success >= rate and n == complete), None)


# --- tables -------------------------------------------------------------------------------------------


def tables(spec: Mapping[str, Any], results: Results) -> Iterator[Table]:
    """The tables of the rows, of their groups, of the former defaults, of the ablations, and of the steps in
    which the rows reach what the published preset does."""
    titles = {
        "rows": f"{spec['title']}: best model on fresh episodes",
        "defaults_before": "former defaults",
        "ablations": "ablations",
    }
    for part, title in titles.items():
        runs = {name: run for name, run in results["runs"].items() if run["part"] == part}
        if runs:
            yield _table(title, runs)
    if groups := group_entries(spec, results):
        yield _group_table(groups)
    presets = {row: values["preset"] for row, values in spec["rows"].items() if "preset" in values}
    efficiency = [cells for row, file in presets.items() for cells in _efficiency(row, Path(file), results)]
    if efficiency:
        table = Table(
            *("row", "seed", "best of policy-decorator", "at", "ours reaches it at", "ratio"),
            title="sample efficiency",
            title_justify="left",
        )
        for cells in efficiency:
            table.add_row(*cells)
        yield table


def _table(title: str, runs: Results) -> Table:
    table = Table(
        *("run", "steps", "base", "best model", "difference", "won, lost", "p (worse)"),
        *("evaluations worse", "lowest", "goal", "evaluation time"),
        title=title,
        title_justify="left",
    )
    for run in runs.values():
        table.add_row(*row_cells(run, runs))
    return table


def row_cells(run: Results, runs: Results) -> list[str]:
    """The cells of a run in a table of `runs`.

    An ablation has the difference to the run in which nothing is changed too.
    """
    words = [run["row"], run["variant"], f"seed {run['seed']}"]
    name = ", ".join(word for word in words if word)
    last = f"{int(run['curve'][-1][0]):,}" if run["curve"] else "0"
    checks = run["checks"]
    worse = f"{run['num_worse']} of {len(checks)}"
    episodes = [check["episodes"] for check in checks]
    if episodes:
        worse += f"\n({_range_text(min(episodes), max(episodes))} episodes)"
    lowest = min((check["difference"]["mean"] for check in checks), default=math.nan)
    lowest_text = value_text(RATE, lowest, sign=True) if checks else ""
    if not run["finished"]:
        return [name, f"{last} …", "", "", "", "", "", worse, lowest_text, "", ""]
    best, reference = run["best_model"], _reference(run, runs)
    texts = [_rate_text(best["difference"], sign=True)]
    if reference is not None:
        against = comparison(_outcomes(run), _outcomes(reference))["difference"]
        texts.append(f"to {reference['variant']}:\n{_rate_text(against, sign=True)}")
    goal, share = run["goal_reached"], run["evaluation_share"]
    return [
        name,
        last,
        _rate_text(best["base"]),
        _rate_text(best["success"]),
        "\n".join(texts),
        f"{best['won']}, {best['lost']}",
        f"{best['p_worse']:.2g}",
        worse,
        lowest_text,
        "" if goal is None else "reached" if goal else "missed",
        "" if share is None else f"{100 * share:.0f} %",
    ]


def _range_text(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def _rate_text(summary: Results, sign: bool = False) -> str:
    return f"{value_text(RATE, summary['mean'], sign=sign)}\n{interval_text(RATE, summary['interval'])}"


def _reference(run: Results, runs: Results) -> Results | None:
    """The finished run with nothing changed that an ablation is compared with."""
    same = [
        other
        for other in runs.values()
        if run["part"] == "ablations"
        and (other["row"], other["seed"]) == (run["row"], run["seed"])
        and other["finished"]
    ]
    reference = next((other for other in same if other["variant"] == "nothing changed"), None)
    return None if reference is run else reference


def _outcomes(run: Results) -> list[float]:
    return [float(outcome) for outcome in run["best_model"]["outcomes"]]


def _efficiency(row: str, file: Path, results: Results) -> list[list[str]]:
    """The cells of each run of `row`, compared with the curve of the preset in `file`."""
    seeds = json.loads((Path(__file__).parents[1] / file).read_text(encoding="utf-8"))
    curve = next(iter(seeds["variants"]["policy-decorator"]["seeds"].values()))
    best = max(rate for _, rate, _ in curve)
    at = steps_to(curve, best)
    assert at is not None
    rows = []
    for run in results["runs"].values():
        if run["part"] == "rows" and run["row"] == row:
            ours = steps_to(run["curve"], best)
            text = ["not yet", ""] if ours is None else [f"{ours:,}", f"{ours / at:.2f}" if at else ""]
            rows.append([row, str(run["seed"]), value_text(RATE, best), f"{at:,}", *text])
    return rows


# --- groups -------------------------------------------------------------------------------------------


def group_entries(spec: Mapping[str, Any], results: Results) -> dict[str, Results]:
    """What the finished runs of each group of rows have in common, by the name of the group: the means of the
    success rates of base and best model, the number of best models that solve at least 95 %, and the number
    below their base. A row with several seeds counts once for each of them."""
    groups: dict[str, Results] = {}
    for name in dict.fromkeys(row["group"] for row in spec["rows"].values() if "group" in row):
        rows = {row: values for row, values in spec["rows"].items() if values.get("group") == name}
        runs = [run for run in results["runs"].values() if run["part"] == "rows" and run["row"] in rows]
        best = [run["best_model"] for run in runs if run["finished"]]
        entry: Results = {
            "runs": sum(len(row["seeds"]) for row in rows.values()),
            "finished": len(best),
            "at_95": sum(model["success"]["mean"] >= 0.95 for model in best),
            "below_base": sum(model["success"]["mean"] < model["base"]["mean"] for model in best),
        }
        if best:
            entry["base"] = fmean(model["base"]["mean"] for model in best)
            entry["success"] = fmean(model["success"]["mean"] for model in best)
        groups[name] = entry
    return groups


def _group_table(groups: Mapping[str, Results]) -> Table:
    table = Table(
        *(
            "rows",
            "runs finished",
            "mean base",
            "mean best model",
            "mean gain",
            "at least 95 %",
            "below base",
        ),
        title="groups of rows: means of the finished runs",
        title_justify="left",
    )
    for name, group in groups.items():
        cells = 3 * [""]
        if group["finished"]:
            base, success = group["base"], group["success"]
            cells = [
                value_text(RATE, base),
                value_text(RATE, success),
                value_text(RATE, success - base, sign=True),
            ]
        counts = [str(group[count]) for count in ("at_95", "below_base")]
        table.add_row(name, f"{group['finished']} of {group['runs']}", *cells, *counts)
    return table


# --- curves -------------------------------------------------------------------------------------------


def plot(spec: Mapping[str, Any], results: Results, path: Path) -> None:
    """A panel for each row with runs: success in the evaluations during training, of the rows in colour, and
    of the former defaults in grey. Rows of a group that is listed in `spec["summarized"]` are left out."""
    from matplotlib.figure import Figure

    # Rows with runs.
    names = [
        row for row, values in spec["rows"].items() if values.get("group") not in spec.get("summarized", ())
    ]
    shown = {
        row: [run for run in results["runs"].values() if run["row"] == row and run["part"] != "ablations"]
        for row in names
    }
    shown = {row: runs for row, runs in shown.items() if runs}
    if not shown:
        return
    columns = min(4, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * lines), layout="constrained")
    # A panel for each.
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, (row, runs) in zip(panels, shown.items(), strict=False):
        axes.set_axis_on()
        for run in sorted(runs, key=lambda run: run["part"]):
            former = run["part"] != "rows"
            style = {"color": "0.6", "linestyle": {"ppo": ":"}.get(run["variant"], "-")} if former else {}
            label = run["variant"] if former else f"seed {run['seed']}"
            x, y = [step / 1000 for step, *_ in run["curve"]], [100 * rate for _, rate, _ in run["curve"]]
            axes.plot(x, y, marker=".", label=label, **style)
        base = next((run["curve"][0][1] for run in runs if run["curve"]), None)
        if base is not None:
            axes.axhline(100 * base, color="0.3", linestyle="--", linewidth=1)
        axes.set(title=row, ylim=(-2, 102), xlabel="1,000 env steps", ylabel="success [%]")
        axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=110)


def plot_gains(spec: Mapping[str, Any], results: Results, path: Path) -> None:
    """A line for each finished run of the groups in `spec["summarized"]`, from the success of the base to
    that of the best model, in the order of the base's."""
    from matplotlib.figure import Figure

    rows = {row for row, values in spec["rows"].items() if values.get("group") in spec.get("summarized", ())}
    models = {
        run["row"]: run["best_model"]
        for run in results["runs"].values()
        if run["row"] in rows and run["part"] == "rows" and run["finished"]
    }
    if not models:
        return
    ordered = sorted(models, key=lambda row: models[row]["base"]["mean"], reverse=True)
    base, best = ([100 * models[row][name]["mean"] for row in ordered] for name in ("base", "success"))
    figure = Figure(figsize=(7.0, 1.2 + 0.19 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    axes.hlines(ordered, base, best, color="0.7")
    axes.plot(base, ordered, "o", color="0.4", label="base")
    axes.plot(best, ordered, "o", color="C0", label="base and residual")
    axes.set(xlim=(-2, 102), xlabel="success [%]")
    axes.tick_params(axis="y", labelsize="x-small")
    axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=110)
