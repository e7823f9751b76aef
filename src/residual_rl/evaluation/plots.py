"""Plots of a run's metrics and evaluation, as SVG for `report.html` and as PNG files."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from residual_rl.evaluation.eval_file import is_rate, metrics_of, policies_of
from residual_rl.evaluation.formatting import label
from residual_rl.evaluation.plot_style import (
    COLORS,
    INK,
    OTHER_COLORS,
    Rows,
    color_of,
    format_percent,
    format_steps,
    make_axes,
    plot_style,
    series,
    small_multiples,
    tags_of,
)
from residual_rl.utils.files import make_folder, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUTCOMES = {
    "both succeed": "#2fa36b",
    "residual only": "#2a7de1",
    "base only": "#e8862e",
    "neither": "#8b919a",
}
LOSSES = (
    ("train/value_loss", "Value loss"),
    ("train/policy_gradient_loss", "Policy gradient loss"),
    ("train/explained_variance", "Explained variance"),
    ("train/approx_kl", "Approximate KL"),
    ("train/clip_fraction", "Clipped fraction"),
    ("train/entropy_loss", "Entropy loss"),
)
NO_DURATIONS = (
    "time/fps",
    "time/iterations",
    "time/total_timesteps",
    "time/elapsed",
    "time/time_elapsed",
    "time/wall",
)


@dataclass(frozen=True)
class Plot:
    """A figure with its file name, title and caption."""

    name: str
    title: str
    caption: str
    figure: Figure


def make_plots(rows: Rows, evaluation: Mapping[str, Any] | None = None) -> list[Plot]:
    """All plots for which the metrics `rows` (see `logger.read_metrics`) and the evaluation have data."""
    makers = (success_plot, curves_plot, episodes_plot, residual_plot, task_plot, losses_plot, time_plot)
    with plot_style():
        plots = [make(rows, evaluation) for make in makers]
    return [plot for plot in plots if plot is not None]


def save_pngs(plots: Sequence[Plot], folder: Path) -> list[Path]:
    """Write each plot as `folder/NAME.png`. Raises `WriteError`."""
    make_folder(folder)
    paths = [folder / f"{plot.name}.png" for plot in plots]
    for plot, path in zip(plots, paths, strict=True):
        save_png(plot.figure, path)
    return paths


def save_png(figure: Figure, path: Path) -> None:
    """Write the PNG file `path`. Raises `WriteError`."""
    with replacing(path) as temp, plot_style():
        figure.savefig(temp, format="png", dpi=150, facecolor="white")


def svg(plot: Plot) -> str:
    """The plot as an SVG element to embed in a page, with texts in the font and colour of the page."""
    buffer = io.StringIO()
    with plot_style({"svg.hashsalt": plot.name}):
        plot.figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    text = buffer.getvalue()
    text = (
        text[text.index("<svg") :]
        .replace(INK, "currentColor")
        .replace("'DejaVu Sans'", "system-ui, sans-serif")
    )
    # The page sets the width, and ids get a prefix so that they are unique in it.
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{plot.name}-", text)


def curves_plot(rows: Rows, evaluation: Mapping[str, Any] | None) -> Plot | None:
    """Success and return over training, with the base policy's success for comparison."""
    # Plots with data: title, and a tag and label for each line.
    evaluated = "evaluation, fixed seeds"
    success = (("rollout/success_rate_100", "last 100 training episodes"), ("eval/success_rate", evaluated))
    returns = (("rollout/ep_rew_mean", "training episodes"), ("eval/mean_reward", evaluated))
    both = (("Success", success), ("Return", returns))
    panels = [panel for panel in both if any(series(rows, tag)[0] for tag, _ in panel[1])]
    if not panels:
        return None
    figure, axes = make_axes(len(panels), columns=2, height=3.1)
    for axis, (title, lines) in zip(axes, panels, strict=True):
        # Evaluations have a marker at each point.
        for (tag, name), color in zip(lines, (COLORS["residual"], "#16a085"), strict=True):
            steps, values = series(rows, tag)
            if steps:
                at_evaluations = {"marker": "o", "markersize": 4.5, "linewidth": 1.4}
                marks = at_evaluations if tag.startswith("eval/") else {"linewidth": 1.8}
                axis.plot(steps, values, color=color, label=name, **marks)
        # Success of the base policy as a horizontal line.
        if title == "Success":
            base = (evaluation or {}).get("policies", {}).get("base", {}).get("success_once")
            if base:
                style: dict[str, Any] = {"color": COLORS["base"], "linestyle": "--", "linewidth": 1.4}
                axis.axhline(base["mean"], label="base policy alone", **style)
            format_percent(axis, "y")
        axis.set_title(title)
        format_steps(axis)
        axis.legend(loc="best")
    return Plot("curves", "Learning curves", "Success and return over environment steps.", figure)


def success_plot(rows: Rows, evaluation: Mapping[str, Any] | None) -> Plot | None:  # noqa: ARG001
    """Success rate of each policy with its 95 % interval."""
    if evaluation is None:
        return None
    names = policies_of(evaluation)
    rates = [m for m in metrics_of(evaluation) if is_rate(m, evaluation)]
    if not rates:
        return None
    figure, axes = make_axes(len(rates), columns=2, height=0.55 + 0.42 * len(names))
    for axis, metric in zip(axes, rates, strict=True):
        for row, name in enumerate(names):
            summary = evaluation["policies"][name].get(metric)
            if summary is None:
                continue
            low, high = summary["interval"] or (summary["mean"],) * 2
            axis.plot(
                [low, high],
                [row, row],
                color=color_of(name, row),
                linewidth=5,
                alpha=0.35,
                solid_capstyle="round",
            )
            axis.plot(summary["mean"], row, "o", color=color_of(name, row), markersize=8)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_title(label(metric))
        format_percent(axis, "x")
    count = len(evaluation.get("episode_seeds", ()))
    return Plot(
        "success", "Success by policy", f"Mean and 95 % interval over the same {count} episodes.", figure
    )


def episodes_plot(rows: Rows, evaluation: Mapping[str, Any] | None) -> Plot | None:  # noqa: ARG001
    """Every episode: residual against base on the same seed, or the values of each policy without a base."""
    if evaluation is None:
        return None
    policies = evaluation["policies"]
    paired = "residual" in policies and "base" in policies
    wanted = [m for m in metrics_of(evaluation) if not is_rate(m, evaluation)]
    shown = (
        [m for m in wanted if all(_varies(policies[name].get(m)) for name in ("residual", "base"))]
        if paired
        else wanted
    )
    # The task's metrics are more informative than return and length, and at most six fit.
    shown = sorted(shown, key=lambda m: m in ("return", "episode_length"))[:6]
    if not shown:
        return None
    columns = 3
    figure, axes = make_axes(len(shown), columns=columns, height=2.9)
    for axis, metric in zip(axes, shown, strict=True):
        axis.set_title(label(metric, evaluation))
        if paired:
            _scatter(axis, policies, metric)
        else:
            _strip(axis, evaluation, metric)
    if not paired:
        return Plot("episodes", "Every episode", "One dot per episode.", figure)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, markerscale=1.8)
    caption = (
        "One dot per episode seed. On the dashed line both policies are equal; below it, the value with the "
        "residual is smaller."
    )
    return Plot("episodes", "Every episode, residual against base", caption, figure)


def residual_plot(rows: Rows, evaluation: Mapping[str, Any] | None) -> Plot | None:  # noqa: ARG001
    """Magnitude and penalty of the residual."""
    tags = [(t, label(t.split("/", 1)[1])) for t in tags_of(rows) if t.startswith("residual/")]
    figure = small_multiples(rows, tags)
    caption = "Magnitude and penalty of the residual over environment steps."
    return Plot("residual", "Residual", caption, figure) if figure else None


def task_plot(rows: Rows, evaluation: Mapping[str, Any] | None) -> Plot | None:  # noqa: ARG001
    """Metrics and reward terms of the task."""
    tags = [
        (t, label(t.removeprefix("task/")))
        for kind in ("task/", "reward/")
        for t in tags_of(rows)
        if t.startswith(kind)
    ]
    figure = small_multiples(rows, tags[:9])
    caption = "Metrics and reward terms of the task, means over environment steps."
    return Plot("task", "Task", caption, figure) if figure else None


def losses_plot(rows: Rows, evaluation: Mapping[str, Any] | None) -> Plot | None:  # noqa: ARG001
    """Losses and other metrics of the learner."""
    figure = small_multiples(rows, LOSSES)
    caption = "Metrics of the learner over environment steps."
    return Plot("learning", "Learner", caption, figure) if figure else None


def time_plot(rows: Rows, evaluation: Mapping[str, Any] | None) -> Plot | None:  # noqa: ARG001
    """Share of wall time of each `time/…` part so far, and steps per second."""
    tags = [t for t in tags_of(rows) if t.startswith("time/") and t not in NO_DURATIONS]
    timed = [row for row in rows if tags and all(row.get(t) is not None for t in tags)]
    seconds = [_over_sessions([row[t] for row in timed]) for t in tags]
    steps, speed = series(rows, "time/fps")
    if not timed and not steps:
        return None
    figure, axes = make_axes(bool(timed) + bool(steps), columns=2, height=2.8)
    # Share of each part in the time so far.
    if timed:
        axis = axes[0]
        totals = [max(sum(column), 1e-9) for column in zip(*seconds, strict=True)]
        shares = [[value / total for value, total in zip(line, totals, strict=True)] for line in seconds]
        colors = (COLORS["residual"], COLORS["base"], *OTHER_COLORS, COLORS["zero"])
        names = [label(t.split("/", 1)[1]) for t in tags]
        axis.stackplot([row["step"] for row in timed], shares, labels=names, colors=colors, alpha=0.8)
        axis.set_title("Share of the time so far")
        format_percent(axis, "y")
        axis.set_ylim(0, 1)
        format_steps(axis)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(tags)))
    # Speed.
    if steps:
        axes[-1].plot(steps, speed, color=COLORS["residual"])
        axes[-1].set_title("Steps per second")
        axes[-1].set_ylim(bottom=0)
        format_steps(axes[-1])
    return Plot("time", "Time", "Wall time by part, and environment steps per second.", figure)


def _over_sessions(seconds: Sequence[float]) -> list[float]:
    """Running total of seconds that restart from zero in each resumed session."""
    total, last, totals = 0.0, 0.0, []
    for value in seconds:
        total, last = total + (value - last if value >= last else value), value
        totals.append(total)
    return totals


def _scatter(axis: Axes, policies: Mapping[str, Any], metric: str) -> None:
    residual, base = (policies[name][metric]["per_episode"] for name in ("residual", "base"))
    won = [policies[name].get("success_once", {}).get("per_episode", {}) for name in ("residual", "base")]
    names = list(OUTCOMES)
    # Group the seeds by the outcomes of both policies.
    groups: dict[str, list[str]] = {name: [] for name in names}
    for seed in residual:
        if seed in base:
            first, second = (bool(w.get(seed)) for w in won)
            groups[names[(0 if second else 1) if first else (2 if second else 3)]].append(seed)
    for name, seeds in groups.items():
        x, y = [base[seed] for seed in seeds], [residual[seed] for seed in seeds]
        axis.scatter(x, y, s=13, color=OUTCOMES[name], alpha=0.7, linewidths=0, label=name)
    # A square plot with the diagonal on which both policies are equal.
    low, high = min(axis.get_xlim()[0], axis.get_ylim()[0]), max(axis.get_xlim()[1], axis.get_ylim()[1])
    axis.plot([low, high], [low, high], "--", color=INK, alpha=0.4, linewidth=1)
    axis.set(xlim=(low, high), ylim=(low, high), xlabel="base", ylabel="residual")
    axis.set_box_aspect(1)


def _varies(summary: Mapping[str, Any] | None) -> bool:
    return summary is not None and len(set(summary["per_episode"].values())) > 1


def _strip(axis: Axes, evaluation: Mapping[str, Any], metric: str) -> None:
    names = [name for name in policies_of(evaluation) if metric in evaluation["policies"][name]]
    for row, name in enumerate(names):
        values = list(evaluation["policies"][name][metric]["per_episode"].values())
        # multiples of the golden ratio: evenly spread and reproducible
        spread = [row + 0.6 * ((i * 0.618034) % 1 - 0.5) for i in range(len(values))]
        axis.scatter(values, spread, s=13, color=color_of(name, row), alpha=0.6, linewidths=0)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
