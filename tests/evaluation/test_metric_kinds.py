"""The kind of a metric is declared by its unit, whatever its name."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from residual_rl.evaluation.compare import summarize
from residual_rl.evaluation.eval_file import is_rate
from residual_rl.evaluation.formatting import format_table, label
from residual_rl.evaluation.plots import episodes_plot, success_plot
from residual_rl.evaluation.report import _results
from residual_rl.utils.statistics import mean, paired_difference, proportion

DISTANCES = {"residual": [0.3, 0.1, 0.4], "base": [0.5, 0.5, 0.2]}
GRASPS = {"residual": [1.0, 1.0, 0.0], "base": [0.0, 1.0, 0.0]}


def evaluation() -> dict:  # type: ignore[type-arg]
    results = {
        name: {
            "success_once": torch.tensor(GRASPS[name]),
            "success_distance": torch.tensor(DISTANCES[name], dtype=torch.float64),
            "grasped": torch.tensor(GRASPS[name]),
            "coverage": torch.tensor(DISTANCES[name], dtype=torch.float64),
        }
        for name in ("residual", "base")
    }
    units = {"success_distance": "m", "grasped": "%", "coverage": "%"}
    return summarize(results, [7, 8, 9], "task", {}, units)


def test_summarize__interval_is_that_of_the_declared_kind() -> None:
    made = evaluation()
    residual, paired = made["policies"]["residual"], made["paired"]["residual-base"]
    assert residual["success_distance"]["interval"] == mean(DISTANCES["residual"]).to_json()["interval"]
    assert residual["grasped"]["interval"] == proportion(GRASPS["residual"]).to_json()["interval"]
    assert residual["coverage"]["interval"] == mean(DISTANCES["residual"]).to_json()["interval"]
    first, second = (dict(zip([7, 8, 9], GRASPS[name], strict=True)) for name in ("residual", "base"))
    assert paired["grasped"] == paired_difference(first, second, binary=True).to_json()
    assert paired["success_distance"]["mean"] == pytest.approx(-0.4 / 3)


def test_is_rate__is_declared_by_the_unit() -> None:
    made = evaluation()
    names = ("success_once", "success_distance", "grasped", "coverage")
    assert [is_rate(name, made) for name in names] == [True, False, True, True]
    assert not is_rate("grasped")
    assert label("grasped", made) == "Grasped"
    assert label("success_distance", made) == "Success distance [m]"


def test_format_table__shows_declared_rates_in_percent() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(format_table(evaluation()))
    rows = {line.split("│")[1].strip(): line for line in console.export_text().splitlines() if "│" in line}
    assert "66.7 %" in rows["Grasped"]
    assert "+33.3 pp" in rows["Grasped"]
    assert "26.7 %" in rows["Coverage"]
    assert "0.267" in rows["Success distance [m]"]
    html = _results(evaluation())
    assert "<b>26.7 %</b>" in html
    assert "<td>0.267" in html


def test_plots__success_has_the_declared_rates() -> None:
    success, episodes = success_plot([], evaluation()), episodes_plot([], evaluation())
    assert success is not None
    assert episodes is not None
    titles = [axis.get_title() for axis in success.figure.axes]
    assert titles[:3] == ["Success (once)", "Grasped", "Coverage"]
    assert [axis.get_title() for axis in episodes.figure.axes][:1] == ["Success distance [m]"]
