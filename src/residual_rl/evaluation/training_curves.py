"""`curves.png` of an imitation training: loss and success over gradient steps."""

from __future__ import annotations

from pathlib import Path

from residual_rl.evaluation.plot_style import COLORS, series
from residual_rl.runs.logger import METRICS_FILE, read_metrics
from residual_rl.utils.files import replacing


def save_curves(folder: Path) -> Path | None:
    """Write `folder/curves.png` from the metrics of the run folder `folder`.

    Returns the path, or None if the run has no metrics yet. Raises `WriteError`.
    """
    metrics = folder / METRICS_FILE
    rows = read_metrics(metrics) if metrics.exists() else []
    if not rows:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    loss, success = figure.subplots(1, 2)
    for tag, name, color in (
        ("train/loss", "training", COLORS["residual"]),
        ("val/loss", "validation", COLORS["base"]),
    ):
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
