"""Text for evaluations: labels, numbers, intervals and the table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from residual_rl.evaluation.eval_file import LABELS, is_rate, metrics_of, policies_of, unit_of
from residual_rl.utils.text import printable


def label(metric: str, evaluation: Mapping[str, Any] | None = None, unit: bool = True) -> str:
    """The label of `metric`, by default with its unit in brackets: `Episode length [steps]`. Values of rates
    have their own percent sign."""
    text = LABELS.get(metric) or metric.replace("_", " ").replace("/", ": ").capitalize()
    shown = unit_of(metric, evaluation)
    return printable(f"{text} [{shown}]" if shown and shown != "%" and unit else text)


def number(value: float, sign: bool = False) -> str:
    """Three significant digits, with an exponent only for very small values."""
    form = ",.0f" if abs(value) >= 1000 else ".2e" if value and abs(value) < 1e-4 else ".3g"
    return _minus(f"{value:{'+' if sign and value else ''}{form}}")


def value_text(
    metric: str, value: float, sign: bool = False, evaluation: Mapping[str, Any] | None = None
) -> str:
    """`98.5 %` for a rate, `number` for other metrics.

    With `sign`, the value is a difference: `+12.5 pp` (percentage points) for a rate.
    """
    if not is_rate(metric, evaluation):
        return number(value, sign)
    return _minus(f"{100 * value:+.1f} pp" if sign else f"{100 * value:.1f} %")


def interval_text(
    metric: str, interval: Sequence[float] | None, evaluation: Mapping[str, Any] | None = None
) -> str:
    """`[95.0, 99.2]`, in the unit of `value_text`; empty without an interval."""
    if interval is None:
        return ""
    rate = is_rate(metric, evaluation)
    low, high = (_minus(f"{100 * v:.1f}") if rate else number(v) for v in interval)
    return f"[{low}, {high}]"


def pair_text(pair: str) -> str:
    """The label of a pair: `residual − base` for `residual-base`."""
    return " − ".join(pair.split("-", 1))


def format_table(evaluation: Mapping[str, Any]) -> Table:
    """A rich table of means and 95 % intervals, with a column for each policy and each paired difference."""
    names = policies_of(evaluation)
    pairs = evaluation.get("paired", {})
    episodes = len(evaluation.get("episode_seeds", ()))
    table = Table(
        title=f"{evaluation.get('task', '')}: {episodes} episodes, mean [95 % interval]",
        title_justify="left",
    )
    table.add_column("metric")
    for name in names:
        table.add_column(name, justify="right")
    for pair in pairs:
        table.add_column(pair_text(pair), justify="right")
    for metric in metrics_of(evaluation):
        row = [_cell(evaluation, metric, evaluation["policies"][name].get(metric)) for name in names]
        differences = [_cell(evaluation, metric, paired.get(metric), sign=True) for paired in pairs.values()]
        table.add_row(Text(label(metric, evaluation)), *row, *differences)
    return table


def _cell(
    evaluation: Mapping[str, Any], metric: str, summary: Mapping[str, Any] | None, sign: bool = False
) -> Text:
    if summary is None:
        return Text("–")
    interval = interval_text(metric, summary["interval"], evaluation)
    mean = Text(value_text(metric, summary["mean"], sign, evaluation))
    return mean.append(f"\n{interval}", "dim") if interval else mean


def _minus(text: str) -> str:
    return text.replace("-", "−")
