"""A probe as a table and texts for the terminal, and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from residual_rl.evaluation.plot_style import COLORS, OTHER_COLORS, format_percent, make_axes, plot_style
from residual_rl.evaluation.probe import SHARES, STALL_STEPS, Condition, Ends, Probe
from residual_rl.evaluation.probe_advice import Advice, percent, points
from residual_rl.utils.files import replacing, write_json
from residual_rl.utils.statistics import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

JSON_FILE = "probe.json"
PLOT_FILE = "probe.png"
NAMES = {
    "correlated": "correlated noise",
    "white": "white noise",
    "offset": "constant offset",
    "delay": "one step late",
}
"""Names of the disturbances."""


def save_probe(folder: Path, probe: Probe, advice: Advice) -> None:
    """Write `probe.json` and `probe.png` into `folder`. Raises `WriteError`."""
    write_json(folder / JSON_FILE, {**probe.to_json(), "advice": advice.to_json()})
    with plot_style(), replacing(folder / PLOT_FILE) as temporary:
        figure, axes = make_axes(2 if probe.predictions else 1, columns=2, height=3.4)
        _plot_success(axes[0], probe)
        if probe.predictions:
            _plot_predictions(axes[1], probe)
        figure.savefig(temporary, format="png", dpi=130)


# --- terminal -----------------------------------------------------------------------------------------------


def probe_table(probe: Probe) -> Table:
    """A rich table of the success under each disturbance, with paired differences and 95 % intervals."""
    episodes = f"{probe.success.n} episodes"
    if probe.conditions:
        episodes = f"{episodes}, the first {probe.conditions[0].success.n} also with each disturbance"
    title = f"{probe.task}, base policy {probe.base_policy}: {episodes}; mean [95 % interval]"
    table = Table("disturbance", title=title, title_justify="left")
    for name in ("size", "success", "difference"):
        table.add_column(name, justify="right")
    table.add_row("none", "", _rate(probe.success), "")
    for condition in probe.conditions:
        size = f"{condition.size:g}" if condition.size else ""
        success, difference = condition.success, condition.difference
        changes = f"{points(difference.mean)} {_interval(difference)}"
        table.add_row(NAMES[condition.kind], size, _rate(success), changes)
    return table


def probe_texts(probe: Probe) -> Iterator[str]:
    """Sentences on what the table does not show."""
    if probe.max_disturbed_steps is not None:
        yield (
            f"Disturbed episodes, and the same undisturbed ones in the difference, fail after "
            f"{probe.max_disturbed_steps} steps."
        )
    yield _ends_text("Successes", probe.successes)
    yield _ends_text("Failures", probe.failures)
    yield f"Base actions at the bounds: {percent(probe.at_bounds)} of all entries."
    if probe.predictions:
        times = ", ".join(
            f"{p.area.mean:.2f} {_interval(p.area, 1)} at step {p.step}" for p in probe.predictions
        )
        yield f"Prediction of failures (area under the ROC curve): {times}."


def advice_texts(advice: Advice, overridden: Mapping[str, Any]) -> Iterator[str]:
    """Each setting with its reason, the warnings and the verdict; `overridden` has the values of settings
    that the user chose."""
    for choice in advice.choices:
        flag, chosen = f"--{choice.setting.replace('_', '-')}", ""
        if choice.setting in overridden:
            chosen = f" (you chose {overridden[choice.setting]})"
        yield f"{flag} {choice.value}{chosen}: {choice.reason}."
    for warning in advice.warnings:
        yield f"Warning: {warning}."
    if advice.verdict is not None:
        yield f"Verdict: {advice.verdict}."


def _ends_text(name: str, ends: Ends) -> str:
    if not ends.episodes:
        return f"{name}: none."
    truncated = ends.episodes - ends.terminated
    stalled = f", {ends.stalled} stalled (the action hardly changes in the last {STALL_STEPS} steps)"
    spread = "" if ends.disagreement is None else f"; disagreement {ends.disagreement:.3g}"
    return (
        f"{name}: {ends.episodes}, median length {ends.median_length:g} steps; {ends.terminated} terminated, "
        f"{truncated} truncated{stalled if ends.stalled else ''}{spread}."
    )


def _rate(rate: Summary) -> str:
    return f"{percent(rate.mean)} {_interval(rate)}"


def _interval(summary: Summary, unit: float = 0.01) -> str:
    """`[12.3, 45.6]` in multiples of `unit`; empty without an interval."""
    if summary.low is None or summary.high is None:
        return ""
    low, high = (f"{value / unit:.{1 if unit < 1 else 2}f}" for value in (summary.low, summary.high))
    return f"[{low}, {high}]".replace("-", "−")


# --- plot ---------------------------------------------------------------------------------------------------


def _plot_success(axis: Axes, probe: Probe) -> None:
    """Success against the size of the noise; a delay is shown at size 0."""
    style = {"correlated": (COLORS["residual"], "-o"), "white": (OTHER_COLORS[1], "-s")}
    for kind, (color, line) in style.items():
        found = [c for c in probe.conditions if c.kind == kind]
        if found:
            rates = [probe.success, *(c.success for c in found)]
            _errorbars(axis, [0.0, *(c.size for c in found)], rates, color, line, NAMES[kind])
    for (kind, marker), color in zip((("offset", "D"), ("delay", "^")), OTHER_COLORS[2:], strict=True):
        single: list[Condition] = [c for c in probe.conditions if c.kind == kind]
        for c in single:
            _errorbars(axis, [c.size], [c.success], color, marker, NAMES[kind])
    _errorbars(axis, [0.0], [probe.success], COLORS["base"], "o", "undisturbed")
    format_percent(axis, "y")
    axis.set(title="Success of the base policy", xlabel="size of the disturbance [residual unit]")
    axis.legend(loc="best")


def _plot_predictions(axis: Axes, probe: Probe) -> None:
    """Predictability of failures against the share of a success's median length."""
    shares = [100 * p.share for p in probe.predictions]
    _errorbars(
        axis, shares, [p.area for p in probe.predictions], COLORS["residual"], "-o", "held-out episodes"
    )
    axis.axhline(0.5, color=COLORS["zero"], linestyle="--", linewidth=1.2, label="chance")
    axis.set(
        title="Prediction of failures",
        xlabel="time [% of the median length of a success]",
        ylabel="area under the ROC curve",
        ylim=(0.35, 1.03),
        xticks=[100 * share for share in SHARES],
    )
    axis.legend(loc="lower right")


def _errorbars(axis: Axes, x: list[float], rates: list[Summary], color: str, line: str, name: str) -> None:
    means = [rate.mean for rate in rates]
    ends = [(rate.low, rate.high) if rate.low is not None else (rate.mean, rate.mean) for rate in rates]
    below = [max(mean - (low or 0.0), 0.0) for mean, (low, _) in zip(means, ends, strict=True)]
    above = [max((high or 0.0) - mean, 0.0) for mean, (_, high) in zip(means, ends, strict=True)]
    axis.errorbar(x, means, (below, above), fmt=line, color=color, capsize=3, label=name)
