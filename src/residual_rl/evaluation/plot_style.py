"""Common parts of all plots: colours, series of metrics, grids of axes and the style of Matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"residual": "#2a7de1", "base": "#e8862e", "zero": "#8b919a"}
OTHER_COLORS = ("#8b5cf6", "#16a085", "#d6336c", "#b8860b")
INK = "#1b2230"
"""Colour of texts and axes. `svg` replaces it by the text colour of the page, which may be light or dark."""

Rows = Sequence[Mapping[str, Any]]


def series(rows: Rows, tag: str, limit: int = 1000) -> tuple[list[int], list[float]]:
    """Steps and values of `tag`; long series are thinned evenly to about `limit` values."""
    found = [(row["step"], row[tag]) for row in rows if row.get(tag) is not None]
    found = found[:: max(1, len(found) // limit)]
    return [step for step, _ in found], [value for _, value in found]


def tags_of(rows: Rows) -> list[str]:
    """All tags, in the order of their first occurrence."""
    return list(dict.fromkeys(tag for row in rows for tag in row if tag != "step"))


def color_of(policy: str, index: int = 0) -> str:
    """The colour of a policy in all plots and tables."""
    return COLORS.get(policy, OTHER_COLORS[index % len(OTHER_COLORS)])


def small_multiples(rows: Rows, tags: Sequence[tuple[str, str]]) -> Figure | None:
    """A figure with one plot for each (tag, title) that has data; None if there is none."""
    shown = [(tag, title) for tag, title in tags if series(rows, tag)[0]]
    if not shown:
        return None
    figure, axes = make_axes(len(shown), columns=min(3, len(shown)), height=2.3)
    for axis, (tag, title) in zip(axes, shown, strict=True):
        axis.plot(*series(rows, tag), color=COLORS["residual"])
        axis.set_title(title)
        format_steps(axis)
    return figure


def make_axes(count: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` axes, 10 inches wide, with rows of `height` inches."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(10, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def format_steps(axis: Axes) -> None:
    """Label the x axis with numbers of steps: 20k, 40k, …"""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.margins(x=0.02)


def format_percent(axis: Axes, which: str) -> None:
    """Let the axis `which`, "x" or "y", go from 0 to 100 %."""
    from matplotlib.ticker import PercentFormatter

    along = axis.xaxis if which == "x" else axis.yaxis
    along.set_major_formatter(PercentFormatter(1.0, decimals=0))
    (axis.set_xlim if which == "x" else axis.set_ylim)(-0.03, 1.03)


@contextmanager
def plot_style(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Set the style of all plots within the context; `more` has further settings of Matplotlib."""
    import matplotlib

    colored = (
        "text.color",
        "axes.labelcolor",
        "axes.edgecolor",
        "xtick.color",
        "ytick.color",
        "axes.titlecolor",
    )
    style: Any = {
        "font.family": ["DejaVu Sans"], "font.size": 9,
        "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
        "grid.alpha": 0.14, "grid.color": INK, "grid.linewidth": 0.8, "lines.linewidth": 1.6,
        "figure.constrained_layout.wspace": 0.05, "figure.constrained_layout.hspace": 0.08,
        "legend.frameon": False, "legend.fontsize": 8.5, "svg.fonttype": "none", "text.parse_math": False,
        **dict.fromkeys(colored, INK),
        **(more or {}),
    }  # fmt: skip
    with matplotlib.rc_context(style):
        yield
