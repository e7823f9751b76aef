"""Comparison of two policies that were evaluated on the same episodes, from their evaluation files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from residual_rl.errors import ConfigError
from residual_rl.evaluation.compare import summarize
from residual_rl.evaluation.eval_file import is_outcome
from residual_rl.evaluation.evaluated import Episodes, Evaluated
from residual_rl.evaluation.formatting import format_table, interval_text, value_text
from residual_rl.evaluation.plot_style import INK, OTHER_COLORS, format_percent, plot_style
from residual_rl.evaluation.plots import save_png
from residual_rl.utils.statistics import episodes_to_detect, won_and_lost
from residual_rl.utils.text import listed, one_line, printable

FORMAT_VERSION = 1
RATE = "success_once"
DETECTED = 0.05
"""The difference of success rates whose number of episodes is computed: 5 points."""
POWER = 0.8
"""The probability with which they detect it."""
_SHOWN = 20
"""Different settings that a warning names."""
_FIRST, _SECOND = "A", "B"
_PAIR = f"{_FIRST}-{_SECOND}"
_OVERALL = "all tasks"


def compare(first: Evaluated, second: Evaluated) -> dict[str, Any]:
    """Compare two policies episode by episode; the difference is first minus second.

    Returns:
        `tasks`, which has for each task the two policies A and B and their paired difference in the form of
        `eval.json`, and `success`: the episodes that only A has `won`, that it has `lost`, and those with
        `both` and `neither`; `overall`, the same for the episodes of all tasks, in which they are numbered;
        `episodes_needed` to detect a difference of 5 points in success; and `warnings`.

    Raises:
        ConfigError: the tasks or the episode seeds are not the same, or there is no common metric.
    """
    # The same tasks and settings, or a warning.
    pairs, warnings = _matched(first, second)
    warnings += _different_settings(first, second)
    units = {**second.units, **first.units}

    # Each task, and all of them together.
    tasks = {}
    pooled: tuple[Episodes, Episodes] = ({}, {})
    for name, other in pairs.items():
        one, two = first.tasks[name], second.tasks[other]
        common = _paired_metrics(one, two, name if len(pairs) > 1 else None, first, second)
        tasks[name] = _comparison(name, {m: one[m] for m in common}, {m: two[m] for m in common}, units)
        for pool, episodes in zip(pooled, (one, two), strict=True):
            for metric in common:
                kept = pool.setdefault(metric, {})
                kept.update(enumerate((episodes[metric][seed] for seed in sorted(one[metric])), len(kept)))
    if len(tasks) == 1:
        overall = next(iter(tasks.values()))
    else:
        everywhere = [m for m in pooled[0] if all(m in task["policies"][_FIRST] for task in tasks.values())]
        one, two = ({metric: pool[metric] for metric in everywhere} for pool in pooled)
        overall = _comparison(_OVERALL, one, two, units)
    return {
        "format_version": FORMAT_VERSION,
        _FIRST: first.name,
        _SECOND: second.name,
        "warnings": warnings,
        "tasks": tasks,
        "overall": overall,
        "episodes_needed": _episodes_needed(overall),
    }


def _matched(first: Evaluated, second: Evaluated) -> tuple[dict[str, str], list[str]]:
    """The tasks of `second` by those of `first`, and warnings."""
    if len(first.tasks) == len(second.tasks) == 1:
        (name,), (other,) = first.tasks, second.tasks
        if _simple(name) == _simple(other):
            return {name: other}, []
        return {name: other}, [
            f"the tasks have different names: {one_line(name)} in {_FIRST}, {one_line(other)} in {_SECOND}"
        ]
    odd = sorted(set(first.tasks) ^ set(second.tasks))
    if odd:
        raise ConfigError(f"the two evaluations are of different tasks; only one has {listed(odd)}")
    return {name: name for name in first.tasks}, []


def _simple(name: str) -> str:
    return name.casefold().replace("_", "-")


def _different_settings(first: Evaluated, second: Evaluated) -> list[str]:
    if first.settings is None or second.settings is None:
        unknown = " and ".join(
            name for name, one in ((_FIRST, first), (_SECOND, second)) if one.settings is None
        )
        return [f"the env settings of {unknown} are unknown, so that they cannot be compared"]
    different = [
        f"{one_line(name, 40)} {_shown(first.settings, name)} in {_FIRST},"
        f" {_shown(second.settings, name)} in {_SECOND}"
        for name in {**first.settings, **second.settings}
        if first.settings.get(name) != second.settings.get(name)
    ]
    if not different:
        return []
    more = f"; and {len(different) - _SHOWN:,} more" if len(different) > _SHOWN else ""
    return [f"the env settings differ: {'; '.join(different[:_SHOWN])}{more}"]


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return one_line(settings[name], 60) if name in settings else "missing"


def _paired_metrics(
    one: Episodes, two: Episodes, task: str | None, first: Evaluated, second: Evaluated
) -> list[str]:
    """The metrics that both have. Raises `ConfigError` if they are not of the same episode seeds."""
    metrics = [metric for metric in one if metric in two]
    if not metrics:
        raise ConfigError(f"{first.name} and {second.name} have no metric in common")
    a, b = set(one[metrics[0]]), set(two[metrics[0]])
    if a != b:
        where = "" if task is None else f" in {one_line(task)}"
        raise ConfigError(
            f"the episodes of {first.name} and {second.name} cannot be paired{where}, because their seeds"
            f" differ: {_span(a)} and {_span(b)}, {len(a & b)} of them in both; evaluate both on the same"
            " seeds (`residual-rl eval` has --first-seed and --n-episodes, `lerobot-eval` --seed and"
            " --eval.n_episodes)"
        )
    return metrics


def _span(seeds: set[int]) -> str:
    return f"{len(seeds)} from {min(seeds)} to {max(seeds)}" if seeds else "none"


def _comparison(task: str, one: Episodes, two: Episodes, units: Mapping[str, str]) -> dict[str, Any]:
    """Both policies in the form of `eval.json`, with the counts of the outcomes."""
    seeds = sorted(next(iter(one.values())))
    results = {
        policy: {
            metric: torch.tensor([values[seed] for seed in seeds], dtype=torch.float64)
            for metric, values in episodes.items()
        }
        for policy, episodes in ((_FIRST, one), (_SECOND, two))
    }
    evaluation = summarize(results, seeds, task, {}, units, pairs=((_FIRST, _SECOND),))
    evaluation["success"] = None
    if RATE in one and is_outcome(RATE, [*one[RATE].values(), *two[RATE].values()]):
        won, lost = won_and_lost((one[RATE][seed], two[RATE][seed]) for seed in seeds)
        both = sum(one[RATE][seed] == two[RATE][seed] == 1.0 for seed in seeds)
        neither = len(seeds) - won - lost - both
        evaluation["success"] = {"won": won, "lost": lost, "both": both, "neither": neither}
    return evaluation


def _episodes_needed(overall: Mapping[str, Any]) -> dict[str, Any] | None:
    counts = overall["success"]
    if counts is None:
        return None
    discordant = (counts["won"] + counts["lost"]) / len(overall["episode_seeds"])
    return {
        "difference": DETECTED,
        "power": POWER,
        "discordant": discordant,
        "episodes": episodes_to_detect(DETECTED, discordant, POWER),
    }


# --- text and plot ------------------------------------------------------------------------------------------


def tables(comparison: Mapping[str, Any]) -> Iterator[Table]:
    """A table for each task, and for all together if there are several."""
    shown = list(comparison["tasks"].values())
    for evaluation in [*shown, comparison["overall"]] if len(shown) > 1 else shown:
        table = format_table({**evaluation, "task": one_line(evaluation["task"], 80)})
        counts = evaluation["success"]
        if counts is not None:
            table.caption_justify = "left"
            table.caption = (
                f"solved by both {counts['both']}, only by {_FIRST} {counts['won']}, only by {_SECOND}"
                f" {counts['lost']}, by neither {counts['neither']}"
            )
        yield table


def texts(comparison: Mapping[str, Any]) -> Iterator[str]:
    """What was compared, and how many episodes a difference of 5 points needs."""
    for name in (_FIRST, _SECOND):
        yield f"{name}: {printable(comparison[name])}"
    needed = comparison["episodes_needed"]
    if needed is None:
        return
    n = len(comparison["overall"]["episode_seeds"])
    yield (
        f"Episodes to detect a difference of {100 * DETECTED:.0f} points in success with a power of "
        f"{100 * POWER:.0f} %: {needed['episodes']:,}, as {value_text(RATE, needed['discordant'])} of these "
        f"{n:,} are solved by only one of the two."
    )


def save_plot(comparison: Mapping[str, Any], path: Path) -> None:
    """Write a PNG file: success rates, or else the first metric, and paired differences by task, with 95 %
    intervals. Raises `WriteError`."""
    from matplotlib.figure import Figure

    rows = list(comparison["tasks"].values())
    rows += [comparison["overall"]] if len(rows) > 1 else []
    metric = next(iter(rows[-1]["policies"][_FIRST]))
    metric = RATE if RATE in rows[-1]["policies"][_FIRST] else metric
    with plot_style():
        figure = Figure(figsize=(10, 1.3 + 0.5 * len(rows)), layout="constrained")
        rates, differences = figure.subplots(1, 2, sharey=True)
        for y, row in enumerate(rows):
            for policy, shift in ((_FIRST, -0.12), (_SECOND, 0.12)):
                color = OTHER_COLORS[policy == _SECOND]
                _draw(rates, row["policies"][policy][metric], y + shift, color, policy if y == 0 else None)
            _draw(differences, row["paired"][_PAIR][metric], y, INK, None)
            text = row["paired"][_PAIR][metric]
            differences.annotate(
                f"{value_text(metric, text['mean'], sign=True)} {interval_text(metric, text['interval'])}",
                (text["mean"], y),
                (0, 7),
                textcoords="offset points",
                ha="center",
            )
        differences.axvline(0.0, color=INK, linewidth=1, alpha=0.5)
        names = [one_line(row["task"], 30) for row in rows]
        rates.set_yticks(range(len(rows)), names)
        rates.set_ylim(len(rows) - 0.4, -0.6)
        rates.set_title("Success" if metric == RATE else one_line(metric, 40))
        differences.set_title(f"{_FIRST} − {_SECOND}, paired")
        if metric == RATE:
            format_percent(rates, "x")
            differences.xaxis.set_major_formatter(lambda x, _: f"{100 * x:+.0f} pp")
        figure.legend(*rates.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    save_png(figure, path)


def _draw(axis: Any, summary: Mapping[str, Any], y: float, color: str, name: str | None) -> None:
    low, high = summary["interval"] or (summary["mean"],) * 2
    axis.plot([low, high], [y, y], color=color, linewidth=4, alpha=0.35, solid_capstyle="round")
    axis.plot(summary["mean"], y, "o", color=color, markersize=6, label=name)
