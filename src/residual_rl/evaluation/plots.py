"""The figures of a run, from its metrics and its evaluation: for `report.html` and as PNG files."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from residual_rl.evaluation.eval_file import is_rate, metrics_of, policies_of
from residual_rl.evaluation.formatting import label
from residual_rl.runs.logger import METRICS_FILE, read_metrics
from residual_rl.utils.files import make_folder, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"residual": "#2a7de1", "base": "#e8862e", "zero": "#8b919a"}
OTHER_COLORS = ("#8b5cf6", "#16a085", "#d6336c", "#b8860b")
INK = "#1b2230"
"""Texts and axes: `svg` turns it into the page's own text colour, so that a figure reads on light and on dark."""
OUTCOMES = {"both succeed": "#2fa36b", "residual only": "#2a7de1", "base only": "#e8862e", "neither": "#8b919a"}
LOSSES = (
    ("train/value_loss", "Value loss"),
    ("train/policy_gradient_loss", "Policy gradient loss"),
    ("train/explained_variance", "Explained variance"),
    ("train/approx_kl", "Approximate KL"),
    ("train/clip_fraction", "Clipped fraction"),
    ("train/entropy_loss", "Entropy loss"),
)
NO_DURATIONS = ("time/fps", "time/iterations", "time/total_timesteps", "time/elapsed", "time/time_elapsed", "time/wall")

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Plot:
    """A figure with its file name and the words around it."""

    name: str
    title: str
    caption: str
    figure: Figure


def make_plots(rows: Rows, evaluation: Mapping[str, Any] | None = None) -> list[Plot]:
    """All figures that the metrics `rows` (see `logger.read_metrics`) and the evaluation have data for."""
    makers = (success_plot, curves_plot, episodes_plot, residual_plot, task_plot, losses_plot, time_plot)
    with _style():
        plots = [make(rows, evaluation) for make in makers]
    return [plot for plot in plots if plot is not None]


def save_pngs(plots: Sequence[Plot], folder: Path) -> list[Path]:
    """Write each plot as `folder/NAME.png`. Raises `WriteError`."""
    make_folder(folder)
    paths = []
    for plot in plots:
        path = folder / f"{plot.name}.png"
        with replacing(path) as temp, _style():
            plot.figure.savefig(temp, format="png", dpi=150, facecolor="white")
        paths.append(path)
    return paths


def svg(plot: Plot) -> str:
    """The plot as an SVG element to put into a page: its texts in the page's font and colour."""
    buffer = io.StringIO()
    with _style({"svg.hashsalt": plot.name}):
        plot.figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui, sans-serif")
    # inside a page the width comes from the page, and ids must not meet those of other figures
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{plot.name}-", text)


def curves_plot(rows: Rows, evaluation: Mapping[str, Any] | None) -> Plot | None:
    """Success and return over training, with the base policy's success for comparison."""
    both = (
        ("Success", (("rollout/success_rate_100", "last 100 training episodes"), ("eval/success_rate", "evaluation, fixed seeds"))),
        ("Return", (("rollout/ep_rew_mean", "training episodes"), ("eval/mean_reward", "evaluation, fixed seeds"))),
    )
    panels = [panel for panel in both if any(series(rows, tag)[0] for tag, _ in panel[1])]
    if not panels:
        return None
    figure, axes = _grid(len(panels), columns=2, height=3.1)
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for (tag, name), color in zip(lines, (COLORS["residual"], "#16a085"), strict=True):
            steps, values = series(rows, tag)
            if steps:
                marks = {"marker": "o", "markersize": 4.5, "linewidth": 1.4} if tag.startswith("eval/") else {"linewidth": 1.8}
                axis.plot(steps, values, color=color, label=name, **marks)
        if title == "Success":
            base = (evaluation or {}).get("policies", {}).get("base", {}).get("success_once")
            if base:
                axis.axhline(base["mean"], color=COLORS["base"], linestyle="--", linewidth=1.4, label="base policy alone")
            _percent(axis, "y")
        axis.set_title(title)
        _steps(axis)
        axis.legend(loc="best")
    return Plot("curves", "Learning curves", "Success and return over environment steps.", figure)


def success_plot(rows: Rows, evaluation: Mapping[str, Any] | None) -> Plot | None:  # noqa: ARG001 (all makers are called alike)
    """Each policy's success with its interval."""
    if evaluation is None:
        return None
    names = policies_of(evaluation)
    rates = [m for m in metrics_of(evaluation) if is_rate(m)]
    if not rates:
        return None
    figure, axes = _grid(len(rates), columns=2, height=0.55 + 0.42 * len(names))
    for axis, metric in zip(axes, rates, strict=True):
        for row, name in enumerate(names):
            summary = evaluation["policies"][name].get(metric)
            if summary is None:
                continue
            low, high = summary["interval"] or (summary["mean"],) * 2
            axis.plot([low, high], [row, row], color=color_of(name, row), linewidth=5, alpha=0.35, solid_capstyle="round")
            axis.plot(summary["mean"], row, "o", color=color_of(name, row), markersize=8)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_title(label(metric))
        _percent(axis, "x")
    count = len(evaluation.get("episode_seeds", ()))
    return Plot("success", "Success by policy", f"Mean and 95 % interval over the same {count} episodes.", figure)


def episodes_plot(rows: Rows, evaluation: Mapping[str, Any] | None) -> Plot | None:  # noqa: ARG001
    """Every episode: residual against base on the same seed, or each policy's values where there is no base."""
    if evaluation is None:
        return None
    policies = evaluation["policies"]
    paired = "residual" in policies and "base" in policies
    wanted = [m for m in metrics_of(evaluation) if not is_rate(m)]
    shown = [m for m in wanted if all(_varies(policies[name].get(m)) for name in ("residual", "base"))] if paired else wanted
    # the task's own figures tell more than return and length, which come first
    shown = sorted(shown, key=lambda m: m in ("return", "episode_length"))[:6]
    if not shown:
        return None
    columns = 3
    figure, axes = _grid(len(shown), columns=columns, height=2.9)
    for axis, metric in zip(axes, shown, strict=True):
        axis.set_title(label(metric, evaluation))
        if paired:
            _scatter(axis, policies, metric)
        else:
            _strip(axis, evaluation, metric)
    if not paired:
        return Plot("episodes", "Every episode", "One dot an episode.", figure)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, markerscale=1.8)
    caption = "One dot an episode seed; on the dashed line both policies are equal, below it the residual's value is the smaller one."
    return Plot("episodes", "Every episode, residual against base", caption, figure)


def residual_plot(rows: Rows, evaluation: Mapping[str, Any] | None) -> Plot | None:  # noqa: ARG001
    """How large the residual is, and what it costs."""
    tags = [(t, label(t.split("/", 1)[1])) for t in tags_of(rows) if t.startswith("residual/")]
    figure = _small_multiples(rows, tags)
    return Plot("residual", "The residual", "Its size and its penalty over environment steps.", figure) if figure else None


def task_plot(rows: Rows, evaluation: Mapping[str, Any] | None) -> Plot | None:  # noqa: ARG001
    """The task's own figures and the terms of its reward."""
    tags = [(t, label(t.removeprefix("task/"))) for kind in ("task/", "reward/") for t in tags_of(rows) if t.startswith(kind)]
    figure = _small_multiples(rows, tags[:9])
    return Plot("task", "The task", "Its figures and the terms of its reward, means over environment steps.", figure) if figure else None


def losses_plot(rows: Rows, evaluation: Mapping[str, Any] | None) -> Plot | None:  # noqa: ARG001
    """The learner's own figures."""
    figure = _small_multiples(rows, LOSSES)
    return Plot("learning", "Learner", "The learner's own figures over environment steps.", figure) if figure else None


def time_plot(rows: Rows, evaluation: Mapping[str, Any] | None) -> Plot | None:  # noqa: ARG001
    """Where the time went: each `time/…` part's share of all seconds so far, and steps per second."""
    tags = [t for t in tags_of(rows) if t.startswith("time/") and t not in NO_DURATIONS]
    timed = [row for row in rows if tags and all(row.get(t) is not None for t in tags)]
    seconds = [_over_sessions([row[t] for row in timed]) for t in tags]
    steps, speed = series(rows, "time/fps")
    if not timed and not steps:
        return None
    figure, axes = _grid(bool(timed) + bool(steps), columns=2, height=2.8)
    if timed:
        axis = axes[0]
        totals = [max(sum(column), 1e-9) for column in zip(*seconds, strict=True)]
        shares = [[value / total for value, total in zip(line, totals, strict=True)] for line in seconds]
        colors = (COLORS["residual"], COLORS["base"], *OTHER_COLORS, COLORS["zero"])
        names = [label(t.split("/", 1)[1]) for t in tags]
        axis.stackplot([row["step"] for row in timed], shares, labels=names, colors=colors, alpha=0.8)
        axis.set_title("Share of the time so far")
        _percent(axis, "y")
        axis.set_ylim(0, 1)
        _steps(axis)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(tags)))
    if steps:
        axes[-1].plot(steps, speed, color=COLORS["residual"])
        axes[-1].set_title("Steps per second")
        axes[-1].set_ylim(bottom=0)
        _steps(axes[-1])
    return Plot("time", "Time", "Where the wall time went, by part, and environment steps per second of it.", figure)


def _over_sessions(seconds: Sequence[float]) -> list[float]:
    """Seconds that start from zero again in a resumed session, as one running total."""
    total, last, totals = 0.0, 0.0, []
    for value in seconds:
        total, last = total + (value - last if value >= last else value), value
        totals.append(total)
    return totals


def series(rows: Rows, tag: str, limit: int = 1000) -> tuple[list[int], list[float]]:
    """The steps and values of `tag` where it was logged, at most about `limit` of them, evenly taken."""
    found = [(row["step"], row[tag]) for row in rows if row.get(tag) is not None]
    found = found[:: max(1, len(found) // limit)]
    return [step for step, _ in found], [value for _, value in found]


def tags_of(rows: Rows) -> list[str]:
    """All tags in the order in which they first come."""
    return list(dict.fromkeys(tag for row in rows for tag in row if tag != "step"))


def color_of(policy: str, index: int = 0) -> str:
    """The policy's colour in every figure and table."""
    return COLORS.get(policy, OTHER_COLORS[index % len(OTHER_COLORS)])


def _scatter(axis: Axes, policies: Mapping[str, Any], metric: str) -> None:
    residual, base = (policies[name][metric]["per_episode"] for name in ("residual", "base"))
    won = [policies[name].get("success_once", {}).get("per_episode", {}) for name in ("residual", "base")]
    names = list(OUTCOMES)
    groups: dict[str, list[str]] = {name: [] for name in names}
    for seed in residual:
        if seed in base:
            first, second = (bool(w.get(seed)) for w in won)
            groups[names[(0 if second else 1) if first else (2 if second else 3)]].append(seed)
    for name, seeds in groups.items():
        x, y = [base[seed] for seed in seeds], [residual[seed] for seed in seeds]
        axis.scatter(x, y, s=13, color=OUTCOMES[name], alpha=0.7, linewidths=0, label=name)
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
        spread = [row + 0.6 * ((i * 0.618034) % 1 - 0.5) for i in range(len(values))]  # golden ratio: even, and the same each time
        axis.scatter(values, spread, s=13, color=color_of(name, row), alpha=0.6, linewidths=0)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)


def _small_multiples(rows: Rows, tags: Sequence[tuple[str, str]]) -> Figure | None:
    shown = [(tag, title) for tag, title in tags if series(rows, tag)[0]]
    if not shown:
        return None
    figure, axes = _grid(len(shown), columns=min(3, len(shown)), height=2.3)
    for axis, (tag, title) in zip(axes, shown, strict=True):
        axis.plot(*series(rows, tag), color=COLORS["residual"])
        axis.set_title(title)
        _steps(axis)
    return figure


def _grid(count: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure 10 inches wide of `count` axes; `height` is that of a row."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(10, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def _steps(axis: Axes) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.margins(x=0.02)


def _percent(axis: Axes, which: str) -> None:
    from matplotlib.ticker import PercentFormatter

    along = axis.xaxis if which == "x" else axis.yaxis
    along.set_major_formatter(PercentFormatter(1.0, decimals=0))
    (axis.set_xlim if which == "x" else axis.set_ylim)(-0.03, 1.03)


@contextmanager
def _style(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    import matplotlib

    style: Any = {
        "font.family": ["DejaVu Sans"], "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
        "grid.alpha": 0.14, "grid.color": INK, "grid.linewidth": 0.8, "lines.linewidth": 1.6,
        "figure.constrained_layout.wspace": 0.05, "figure.constrained_layout.hspace": 0.08,
        "legend.frameon": False, "legend.fontsize": 8.5, "svg.fonttype": "none", "text.parse_math": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor"), INK),
        **(more or {}),
    }  # fmt: skip
    with matplotlib.rc_context(style):
        yield


def save_curves(folder: Path) -> Path | None:
    """Write `curves.png` from the figures in the run folder `folder`; None where there are none yet. Raises `WriteError`."""
    metrics = folder / METRICS_FILE
    rows = read_metrics(metrics) if metrics.exists() else []
    if not rows:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    loss, success = figure.subplots(1, 2)
    for tag, name, color in (("train/loss", "training", COLORS["residual"]), ("val/loss", "validation", COLORS["base"])):
        steps, values = series(rows, tag)
        if steps:
            loss.plot(steps, values, color=color, label=name)
    loss.set(title="Loss", xlabel="gradient step", yscale="log")
    loss.legend()
    steps, values = series(rows, "eval/success_rate")
    if steps:
        success.plot(steps, [100 * value for value in values], "o-", color=COLORS["residual"])
    success.set(title="Success in simulation [%]", xlabel="gradient step", ylim=(-2, 102))
    path = folder / "curves.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    return path
