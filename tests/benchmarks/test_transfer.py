"""The rows of the benchmark of transfer, and what is computed from their files. Nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eval_files import ours, write
from paths import ROOT

from transfer import collect, eval_arguments, file_of, flags_by_row, run_of, train_arguments
from transfer_results import plot, results_of, table

SPEC: dict[str, Any] = {
    "task": ["so101-paper"],
    "train": ["--total-timesteps", "60"],
    "seed": 1,
    "options": {"noise": ["--position-noise", "1"], "play": ["--backlash", "0", "1"]},
    "settings": {"ordinary": [], "harder": ["--backlash", "2", "2"]},
    "controllers": ["jacobian"],
}


def test_flags_by_row__nothing_all_and_each() -> None:
    assert flags_by_row(SPEC) == {
        "nothing": [],
        "all": ["--position-noise", "1", "--backlash", "0", "1"],
        "noise": ["--position-noise", "1"],
        "play": ["--backlash", "0", "1"],
    }


def test_train_arguments__and_those_of_evaluations() -> None:
    assert train_arguments(SPEC, "noise") == [
        "so101-paper",
        "--total-timesteps",
        "60",
        "--position-noise",
        "1",
    ]
    expected = ["eval", "runs/x", "--n-episodes", "5", "--backlash", "2", "2"]
    assert eval_arguments(SPEC, "harder", "runs/x", 5) == expected


def test_transfer__settings_set_every_option_of_the_rows() -> None:
    """A setting that left an option as in training would not be the same for all rows."""
    spec = json.loads((ROOT / "benchmarks" / "transfer.json").read_text())

    def names(flags: list[str]) -> set[str]:
        return {flag for flag in flags if flag.startswith("--")}

    options = names(flags_by_row(spec)["all"]) - {"--observe-sheet-seen"}  # what a policy observes is its own
    assert names(spec["settings"]["harder"]) == options
    assert names(spec["settings"]["ordinary"]) == options - {"--pose-dropout-steps"}  # nothing is lost


def test_results_of__success_and_paired_differences() -> None:
    evaluations = {
        "nothing": {"ordinary": ours({"residual": [1, 0, 0, 1]})},
        "jacobian": {"ordinary": ours({"base": [1, 1, 1, 0]})},
    }
    results = results_of(evaluations)
    assert results["nothing"]["ordinary"]["success"]["mean"] == 0.5
    assert "difference" not in results["nothing"]["ordinary"]
    entry = results["jacobian"]["ordinary"]
    assert (entry["won"], entry["lost"], entry["outcomes"], entry["first_seed"]) == (2, 1, "1110", 1000)
    assert entry["difference"]["mean"] == pytest.approx(0.25)


def test_collect__has_what_is_finished_and_names_the_rest(tmp_path: Path) -> None:
    for row in ("nothing", "noise"):
        run = run_of(tmp_path, row)
        write(run.path / "training_summary.json", {"finished": True})
        for setting in SPEC["settings"] if row == "nothing" else ["ordinary"]:
            write(file_of(tmp_path, row, setting), ours({"residual": [1, 0]}))
    for setting in SPEC["settings"]:
        write(file_of(tmp_path, "jacobian", setting), ours({"base": [0, 0]}))
    results = collect(SPEC, tmp_path)
    assert list(results["policies"]) == ["nothing", "jacobian"]
    assert results["missing"] == ["all", "noise", "play"]
    assert results["commands"]["nothing"] == "residual-rl train so101-paper --total-timesteps 60 --seed 1"
    assert table(results).row_count == 2
    assert table(results).caption == "missing: all, noise, play"
    plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
