"""Comparisons of two evaluations, against values worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eval_files import lerobots, ours, write
from rich.console import Console

from residual_rl.errors import ConfigError
from residual_rl.evaluation.evaluated import Evaluated, read_evaluated
from residual_rl.evaluation.paired_comparison import compare, save_plot, tables, texts
from residual_rl.utils.files import parse_json, to_json
from residual_rl.utils.statistics import episodes_to_detect, paired_difference

A = [1.0] * 6 + [0.0] * 2 + [1.0] * 2
B = [1.0] * 3 + [0.0] * 3 + [1.0] * 1 + [0.0] * 3
"""Both solve 3, only A 5, only B 1, neither 1."""


def evaluated(tmp_path: Path, content: Any, name: str = "e", **options: Any) -> Evaluated:
    return read_evaluated(write(tmp_path / f"{name}.json", content), **options)


def test_compare__counts_and_difference(tmp_path: Path) -> None:
    first, second = (evaluated(tmp_path, ours({"residual": row}), name) for row, name in ((A, "a"), (B, "b")))
    found = compare(first, second)
    assert found["warnings"] == []
    assert list(found["tasks"]) == ["so101-paper"]
    task = found["tasks"]["so101-paper"]
    assert task["success"] == {"won": 5, "lost": 1, "both": 3, "neither": 1}
    difference = task["paired"]["A-B"]["success_once"]
    expected = paired_difference(dict(enumerate(A)), dict(enumerate(B)), binary=True)
    assert difference == expected.to_json()
    assert difference["mean"] == pytest.approx(0.4)
    assert task["paired"]["A-B"]["return"]["mean"] == pytest.approx(4.0)
    assert found["overall"] == task
    # 6 of 10 are discordant
    needed = {"difference": 0.05, "power": 0.8, "discordant": 0.6, "episodes": episodes_to_detect(0.05, 0.6)}
    assert found["episodes_needed"] == needed
    assert parse_json(to_json(found))["overall"]["success"]["won"] == 5


def test_compare__the_order_of_the_episodes_does_not_matter(tmp_path: Path) -> None:
    reordered = ours({"residual": B})
    reordered["episode_seeds"].reverse()
    for summary in reordered["policies"]["residual"].values():
        summary["per_episode"] = dict(reversed(summary["per_episode"].items()))
    first, second = evaluated(tmp_path, ours({"residual": A}), "a"), evaluated(tmp_path, reordered, "b")
    assert compare(first, second)["overall"]["success"]["won"] == 5


def test_compare__lerobot_and_ours(tmp_path: Path) -> None:
    first = evaluated(tmp_path, ours({"residual": A}), "a")
    second = evaluated(tmp_path, lerobots({("so101_paper", 0): B}), "b", lerobot_seed=1000)
    found = compare(first, second)
    assert found["overall"]["success"]["won"] == 5
    assert list(found["overall"]["policies"]["A"]) == ["success_once", "return"]
    assert found["warnings"] == ["the env settings of B are unknown, so that they cannot be compared"]
    other = evaluated(tmp_path, lerobots({("pusht", 0): B}), "c", lerobot_seed=1000)
    assert "the tasks have different names: so101-paper in A, pusht in B" in compare(first, other)["warnings"]


def test_compare__several_tasks_and_all_of_them(tmp_path: Path) -> None:
    tasks = {("libero", 0): A, ("libero", 1): B}
    swapped = {("libero", 0): B, ("libero", 1): B}
    first, second = (
        evaluated(tmp_path, lerobots(rows), name, lerobot_seed=3)
        for rows, name in ((tasks, "a"), (swapped, "b"))
    )
    found = compare(first, second)
    assert [found["tasks"][f"libero/{i}"]["success"]["won"] for i in (0, 1)] == [5, 0]
    overall = found["overall"]
    assert overall["success"] == {"won": 5, "lost": 1, "both": 7, "neither": 7}
    assert overall["paired"]["A-B"]["success_once"]["n"] == 20
    assert overall["policies"]["A"]["success_once"]["mean"] == pytest.approx(0.6)  # (8 + 4) of 20
    assert [table.title.split(":")[0] for table in tables(found)] == ["libero/0", "libero/1", "all tasks"]  # type: ignore[union-attr]
    save_plot(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[1:4] == b"PNG"


def test_compare__other_seeds_are_refused(tmp_path: Path) -> None:
    first = evaluated(tmp_path, ours({"residual": A}), "a")
    for later, both in ((5, 5), (100, 0)):
        second = evaluated(tmp_path, lerobots({("x", 0): B}), "b", lerobot_seed=1000 + later)
        with pytest.raises(
            ConfigError, match=rf"cannot be paired, because .* {both} of them in both; evaluate both"
        ):
            compare(first, second)
    fewer = evaluated(tmp_path, lerobots({("x", 0): B[:4]}), "c", lerobot_seed=1000)
    with pytest.raises(ConfigError, match="10 from 1000 to 1009 and 4 from 1000 to 1003, 4 of them in both"):
        compare(first, fewer)


def test_compare__other_tasks_and_no_common_metric_are_refused(tmp_path: Path) -> None:
    first = evaluated(tmp_path, lerobots({("l", 0): A, ("l", 1): A}), "a", lerobot_seed=0)
    second = evaluated(tmp_path, lerobots({("l", 0): A, ("l", 2): A}), "b", lerobot_seed=0)
    with pytest.raises(ConfigError, match="different tasks; only one has l/1, l/2"):
        compare(first, second)
    one = ours({"residual": A})
    del one["policies"]["residual"]["success_once"]
    other = ours({"residual": A})
    del other["policies"]["residual"]["return"]
    with pytest.raises(ConfigError, match="no metric in common"):
        compare(evaluated(tmp_path, one, "c"), evaluated(tmp_path, other, "d"))


def test_compare__other_settings_are_a_warning(tmp_path: Path) -> None:
    harder = ours({"residual": B}, settings={"task": {"tolerance": 0.005, "servo": "old"}})
    found = compare(evaluated(tmp_path, ours({"residual": A}), "a"), evaluated(tmp_path, harder, "b"))
    assert found["warnings"] == [
        "the env settings differ: tolerance 0.02 in A, 0.005 in B; servo missing in A, old in B"
    ]


def test_compare__without_outcomes_there_is_no_number_of_episodes(tmp_path: Path) -> None:
    content = ours({"residual": [0.25, 0.5]})  # a share, which is no outcome
    found = compare(evaluated(tmp_path, content, "a"), evaluated(tmp_path, content, "b"))
    assert found["overall"]["success"] is None
    assert found["episodes_needed"] is None
    assert len(list(texts(found))) == 2
    save_plot(found, tmp_path / "plot.png")


def test_tables__texts_of_a_file_are_printed_as_they_are(tmp_path: Path) -> None:
    content = ours({"residual": A}, task="\x1b[31m[bold]x")
    found = compare(*(evaluated(tmp_path, content, name) for name in "ab"))
    console = Console(record=True, width=100, markup=False)
    for table in tables(found):
        console.print(table)
    text = console.export_text()
    assert "\\x1b[31m[bold]x" in text
    assert "\x1b[31m" not in text
    assert "solved by both 8, only by A 0, only by B 0, by neither 2" in text
