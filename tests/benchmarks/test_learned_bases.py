"""The runs of the benchmark of learned bases, and what is computed from their files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

import learned_bases
from learned_bases import (
    Cell,
    base_arguments,
    cells,
    collect,
    collect_arguments,
    extend_run,
    read_spec,
    train_arguments,
)
from learned_bases_results import (
    base_entry,
    evaluation_share,
    goal_reached,
    group_entries,
    plot,
    plot_gains,
    row_cells,
    run_entry,
    steps_to,
    tables,
    training_checks,
)
from residual_rl.runs.run_folder import RunFolder

SPEC: dict[str, Any] = {
    "title": "learned bases",
    "tasks": {"so101": {"flags": ["so101-paper"], "python": ".venv"}},
    "demos": {"so101-20": {"task": "so101", "collect": ["--n-episodes", "20"]}},
    "bases": {"bc": {"demos": "so101-20", "imitate": ["--algo", "bc"]}},
    "rows": {
        "bc": {"base": "bc", "steps": 60, "seeds": [1, 2], "goal": {"success": 0.5}},
        "zero": {
            "task": "so101",
            "demos": "so101-20",
            "train": ["--base-policy", "zero"],
            "steps": 100,
            "seeds": [1],
        },
    },
    "defaults_before": {
        "rows": ["bc"],
        "steps": 20,
        "seeds": [1],
        "variants": {"sac": ["--learner", "sac"]},
    },
    "ablations": {
        "rows": ["bc"],
        "steps": 30,
        "seeds": [1],
        "variants": {"nothing changed": [], "no gate": ["--learner", "sac", "--demos", "{demos}"]},
    },
}
BASE = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
WORSE = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
BETTER = [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0]


def write_run(
    folder: Path, evaluations: dict[int, list[float]], best: list[float] | None = None
) -> RunFolder:
    """The files of a run; `best` are the outcomes of its best model, against `BASE`."""
    run = RunFolder(folder)
    run.eval_results.mkdir(parents=True)
    for step, values in evaluations.items():
        (run.eval_results / f"step_{step:09d}.json").write_text(json.dumps({"success_once": values}))
    (folder / "config.json").write_text(json.dumps({"run": {"total_timesteps": 60}}))
    (folder / "command.txt").write_text("residual-rl train so101-paper\n")
    (folder / "versions.json").write_text(json.dumps({"git": {"commit": "abc", "dirty": False}}))
    rows = [{"step": 40, "time/wall": 50.0}, {"step": 60, "time/wall": 100.0, "time/evaluation": 12.0}]
    run.metrics_file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    if best is not None:
        summary = {"finished": True, "steps": 60, "wall_time": 100.0, "step_to_95": None}
        run.summary_file.write_text(json.dumps(summary))
        policies = {
            name: {
                "success_once": {
                    "mean": sum(values) / len(values),
                    "interval": [0.0, 1.0],
                    "n": len(values),
                    "per_episode": {str(10 + i): value for i, value in enumerate(values)},
                }
            }
            for name, values in (("residual", best), ("base", BASE))
        }
        settings = {"model_step": 60, "residual_scale": 1.0}
        run.eval_file.write_text(json.dumps({"policies": policies, "settings": settings}))
    return run


# --- the runs -----------------------------------------------------------------------------------------


def test_cells__first_seeds_come_first() -> None:
    names = [cell.name for cell in cells(SPEC, "rows")]
    assert names == ["bc-1", "zero-1", "bc-2"]
    assert [cell.steps for cell in cells(SPEC, "rows")] == [60, 100, 60]
    assert [cell.steps for cell in cells(SPEC, "rows", 512)] == [512, 512, 512]


def test_cells__episodes_are_those_of_the_row_or_the_spec() -> None:
    def episodes(spec: dict[str, Any], *replaced: int) -> list[int]:
        return [cell.episodes for cell in cells(spec, "rows", *replaced)]

    rows = {"a": {"steps": 1, "seeds": [1], "episodes": 50}, "b": {"steps": 1, "seeds": [1]}}
    assert episodes({"rows": rows}) == [50, 200]
    assert episodes({"rows": rows, "episodes": 100}) == [50, 100]
    assert episodes({"rows": rows}, 512, 8) == [8, 8]


def test_cells__of_a_part_that_the_spec_does_not_have() -> None:
    assert list(cells({"rows": {}}, "ablations")) == []


def test_cells__changed_settings_have_runs_of_their_own() -> None:
    assert [cell.name for cell in cells(SPEC, "defaults_before")] == ["bc-defaults-before-sac-1"]
    assert [(cell.name, cell.flags) for cell in cells(SPEC, "ablations")] == [
        ("bc-ablations-nothing-changed-1", ()),
        ("bc-ablations-no-gate-1", ("--learner", "sac", "--demos", "{demos}")),
    ]


def test_train_arguments__name_task_base_steps_and_changes_only() -> None:
    first, zero = list(cells(SPEC, "rows"))[:2]
    base = ["--base-policy", "il", "--il-checkpoint", "runs/bases/bc"]
    assert train_arguments(SPEC, first, Path("runs")) == ["so101-paper", *base, "--total-timesteps", "60"]
    assert train_arguments(SPEC, zero, Path("runs")) == [
        *("so101-paper", "--base-policy", "zero", "--demos", "runs/demos/so101-20.h5"),
        *("--total-timesteps", "100"),
    ]
    changed = list(cells(SPEC, "ablations"))[1]
    words = ["30", "--learner", "sac", "--demos", "runs/demos/so101-20.h5"]
    assert train_arguments(SPEC, changed, Path("runs"))[-5:] == words


def test_train_arguments__of_a_base_that_is_a_run() -> None:
    spec: dict[str, Any] = {
        "tasks": {"door": {"flags": ["adroit"]}},
        "bases": {"sac": {"task": "door", "train": ["--learner", "sac"], "steps": 9, "seed": 1}},
        "rows": {"door": {"base": "sac", "steps": 5, "seeds": [2]}},
    }
    assert base_arguments(spec, "sac") == ["adroit", "--learner", "sac", "--total-timesteps", "9"]
    assert train_arguments(spec, next(cells(spec, "rows")), Path("runs")) == [
        *("adroit", "--base-policy", "model", "--model-path", "runs/bases/sac", "--total-timesteps", "5")
    ]


def test_read_spec__adds_the_entries_of_a_template_for_each_value(tmp_path: Path) -> None:
    template = {
        "values": ["reach", "push"],
        "tasks": {"{}": {"flags": ["metaworld", "--env-id", "{}-v3"]}},
        "rows": {"{}-bc": {"base": "bc-{}", "steps": 9}},
    }
    file = tmp_path / "spec.json"
    file.write_text(json.dumps({"rows": {"first": {"steps": 1}}, "templates": [template]}))
    assert read_spec(file) == {
        "tasks": {
            "reach": {"flags": ["metaworld", "--env-id", "reach-v3"]},
            "push": {"flags": ["metaworld", "--env-id", "push-v3"]},
        },
        "rows": {
            "first": {"steps": 1},
            "reach-bc": {"base": "bc-reach", "steps": 9},
            "push-bc": {"base": "bc-push", "steps": 9},
        },
        "demos": {},
        "bases": {},
    }


def test_collect_arguments__have_the_settings_of_the_task() -> None:
    expected = ["demos", "collect", "so101-paper", "--n-episodes", "20"]
    assert collect_arguments(SPEC, "so101-20") == expected


@pytest.mark.parametrize("name", ["learned_bases", "other_environments"])
def test_learned_bases__names_in_the_file_exist(name: str) -> None:
    spec = read_spec(ROOT / "benchmarks" / f"{name}.json")
    for part in learned_bases.PARTS:
        for cell in cells(spec, part):
            arguments = train_arguments(spec, cell, Path("runs"))
            # the same command for all rows over learned bases
            is_plain = part == "rows" and "base" in spec["rows"][cell.row]
            assert ("--learner" in arguments) <= (not is_plain)
            assert "train" not in spec["rows"][cell.row] or not is_plain
            is_expert = "calibration" in spec["rows"][cell.row]
            assert not is_expert or {word for word in arguments if word.startswith("--")} <= {
                *("--env-id", "--base-policy", "--base.gain", "--base.bias", "--total-timesteps")
            }
    names = [cell.name for part in learned_bases.PARTS for cell in cells(spec, part)]
    assert len(names) == len(set(names))
    for row in spec["rows"].values():
        assert row.get("continues") is None or row["continues"] in spec["rows"]
        assert "preset" not in row or (ROOT / row["preset"]).is_file()


def test_extend_run__copies_a_finished_run_as_an_unfinished_one(tmp_path: Path) -> None:
    source = write_run(tmp_path / "bc-1", {0: BASE, 60: BETTER}, BETTER)
    source.final_model.mkdir()
    source.checkpoints.mkdir()
    (source.checkpoints / "step_60.safetensors").write_text("weights")
    longer = RunFolder(tmp_path / "bc-200-1")
    extend_run(source, longer, 200)
    assert json.loads(longer.config_file.read_text()) == {"run": {"total_timesteps": 200}}
    assert (longer.checkpoints / "step_60.safetensors").read_text() == "weights"
    for missing in (longer.summary_file, longer.eval_file, longer.final_model):
        assert not missing.exists()
    assert json.loads(source.config_file.read_text()) == {"run": {"total_timesteps": 60}}


# --- what is computed ---------------------------------------------------------------------------------


def test_training_checks__adjust_for_the_number_of_evaluations() -> None:
    checks = training_checks({0: BASE, 20: WORSE, 40: BETTER, 60: BASE})
    assert [check["step"] for check in checks] == [20, 40, 60]
    assert [(check["won"], check["lost"]) for check in checks] == [(0, 5), (2, 1), (0, 0)]
    assert [check["p_worse"] for check in checks] == pytest.approx([1 / 32, 7 / 8, 1.0])
    # times 3, times 2, and the largest of those before
    assert [check["p_holm"] for check in checks] == pytest.approx([3 / 32, 1.0, 1.0])
    assert [check["difference"]["mean"] for check in checks] == pytest.approx([-5 / 8, 1 / 8, 0.0])


def test_training_checks__an_evaluation_that_stopped_early_has_the_first_episodes() -> None:
    (check,) = training_checks({0: BASE, 20: [0.0, 1.0, 0.0]})
    assert (check["episodes"], check["won"], check["lost"], check["base_failures"]) == (3, 0, 2, 0)


def test_training_checks__need_the_base() -> None:
    assert training_checks({20: WORSE}) == []


@pytest.mark.parametrize(
    ("goal", "base", "won", "rate", "expected"),
    [
        (None, 0.5, 0, 1.0, None),
        ({"success": 0.95}, 0.5, 90, 0.95, True),
        ({"success": 0.95}, 0.5, 90, 0.945, False),
        # a base that almost works has the success rate as its goal, another one a share of its failures
        ({"success": 0.95, "failures_solved": 0.5}, 0.4, 100, 0.9, False),
        ({"success": 0.95, "failures_solved": 0.5}, 0.2, 80, 0.6, True),
        ({"success": 0.95, "failures_solved": 0.5}, 0.2, 79, 0.6, False),
    ],
)
def test_goal_reached__is_a_rate_or_a_share_of_failures(
    goal: dict[str, float] | None, base: float, won: int, rate: float, expected: bool | None
) -> None:
    failures = round(200 * (1 - base))
    best_model = {"base": {"mean": base}, "success": {"mean": rate}, "won": won, "base_failures": failures}
    assert goal_reached(goal, best_model, []) is expected


def test_goal_reached__by_step_looks_at_the_curve() -> None:
    goal = {"success": 0.95, "by_step": 10_000}
    assert goal_reached(goal, {}, [[0, 0.4, 100], [10_000, 0.95, 100]])
    assert not goal_reached(goal, {}, [[0, 0.4, 100], [10_000, 0.94, 100], [12_000, 1.0, 100]])


def test_steps_to__ignores_evaluations_that_stopped_early() -> None:
    curve = [[0, 0.4, 100], [10, 0.9, 10], [20, 0.8, 100], [30, 0.9, 100]]
    assert steps_to(curve, 0.8) == 20
    assert steps_to(curve, 0.9) == 30
    assert steps_to(curve, 0.95) is None
    assert steps_to([], 0.5) is None


def test_run_entry__of_a_finished_run(tmp_path: Path) -> None:
    entry = run_entry(write_run(tmp_path / "run", {0: BASE, 20: WORSE, 60: BETTER}, BETTER), {"success": 0.7})
    assert entry["finished"]
    assert entry["goal_reached"]  # 6 of 8
    assert entry["curve"] == [[0, 0.625, 8], [20, 0.0, 8], [60, 0.75, 8]]
    assert entry["num_worse"] == 0  # 2 · 1/32 is above 5 %
    best = entry["best_model"]
    assert (best["won"], best["lost"], best["base_failures"]) == (2, 1, 3)
    assert best["p_worse"] == pytest.approx(7 / 8)
    assert best["outcomes"] == "11110110"
    assert entry["evaluation_share"] == pytest.approx(0.12)


def test_run_entry__finds_a_loss(tmp_path: Path) -> None:
    base, worse = 10 * [1.0], 10 * [0.0]
    entry = run_entry(write_run(tmp_path / "run", {0: base, 20: worse, 40: base}), None)
    assert not entry["finished"]
    assert entry["num_worse"] == 1  # 2 / 2^10


def test_evaluation_share__is_unknown_for_a_resumed_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {0: BASE})
    assert evaluation_share(run) == pytest.approx(0.12)
    with (run.path / "command.txt").open("a") as file:
        file.write("residual-rl train --resume run\n")
    assert evaluation_share(run) is None


def test_base_entry__has_recipe_and_hash(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    summary = {"finished": True, "model": "model.safetensors", "wall_time": 3.0}
    (tmp_path / "training_summary.json").write_text(json.dumps(summary))
    assert base_entry(tmp_path, ["residual-rl imitate"]) == {
        "commands": ["residual-rl imitate"],
        "sha256": {
            "model.safetensors": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        },  # FIPS 180-2, "abc"
        "wall_time": 3.0,
    }


# --- results and tables -------------------------------------------------------------------------------


def options_of(runs: Path) -> argparse.Namespace:
    return argparse.Namespace(runs=runs, steps=None)


def test_collect__keeps_earlier_results_of_other_machines(tmp_path: Path) -> None:
    write_run(tmp_path / "bc-1", {0: BASE, 20: BASE})  # not finished here
    write_run(tmp_path / "zero-1", {0: BASE, 60: BETTER}, BETTER)
    before = {name: {"finished": True, "note": "elsewhere"} for name in ("bc-1", "bc-2", "zero-1", "gone-1")}
    results = collect(SPEC, options_of(tmp_path), {"runs": before, "bases": {"bc": {"sha256": {}}}})
    assert set(results["runs"]) == {"bc-1", "bc-2", "zero-1"}
    assert results["runs"]["bc-1"] == results["runs"]["bc-2"] == before["bc-1"]
    assert results["runs"]["zero-1"]["best_model"]["won"] == 2
    assert results["bases"] == {"bc": {"sha256": {}}}


@pytest.mark.slow
def test_tables__show_each_run_and_ablations_against_the_reference(tmp_path: Path) -> None:
    for cell in [
        Cell("rows", "bc", "", 1, 60, 200, ()),
        *cells(SPEC, "defaults_before"),
        *cells(SPEC, "ablations"),
    ]:
        best = BASE if cell.variant == "no gate" else BETTER
        write_run(tmp_path / cell.name, {0: BASE, 60: best}, best)
    results = collect(SPEC, options_of(tmp_path), {})
    assert [(table.title, table.row_count) for table in tables(SPEC, results)] == [
        ("learned bases: best model on fresh episodes", 1),
        ("former defaults", 1),
        ("ablations", 2),
    ]
    runs = results["runs"]
    row = row_cells(runs["bc-1"], runs)
    assert row[:4] == ["bc, seed 1", "60", "62.5 %\n[0.0, 100.0]", "75.0 %\n[0.0, 100.0]"]
    assert row[5:] == ["2, 1", "0.88", "0 of 1\n(8 episodes)", "+12.5 pp", "reached", "12 %"]
    # the reference has a success more than without the gate: 2 won, 1 lost
    ablation = row_cells(runs["bc-ablations-no-gate-1"], runs)
    assert ablation[4].startswith("+0.0 pp")
    assert "to nothing changed:\n−12.5 pp" in ablation[4]
    assert "to nothing" not in row_cells(runs["bc-ablations-nothing-changed-1"], runs)[4]
    plot(SPEC, results, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_group_entries__are_means_of_finished_runs(tmp_path: Path) -> None:
    rows = {name: {"group": "two", "steps": 60, "seeds": [1]} for name in ("a", "b", "c")}
    spec: dict[str, Any] = {"title": "groups", "summarized": ["two"], "rows": rows}
    runs = {
        name: {
            "part": "rows",
            "row": name,
            "finished": finished,
            "best_model": {"base": {"mean": base}, "success": {"mean": success}},
        }
        for name, finished, base, success in (
            ("a", True, 0.5, 0.95),
            ("b", True, 0.3, 0.25),
            ("c", False, 0, 0),
        )
    }
    results = {"runs": runs}
    assert group_entries(spec, results)["two"] == {
        "runs": 3,
        "finished": 2,
        "at_95": 1,
        "below_base": 1,
        "base": pytest.approx(0.4),
        "success": pytest.approx(0.6),
    }
    plot_gains(spec, results, tmp_path / "gains.png")
    assert (tmp_path / "gains.png").stat().st_size > 1000
    plot_gains(SPEC, {"runs": {}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_row_cells__of_a_running_training(tmp_path: Path) -> None:
    write_run(tmp_path / "bc-1", {0: BASE, 20: WORSE, 40: BASE[:4]})
    runs = collect(SPEC, options_of(tmp_path), {})["runs"]
    assert row_cells(runs["bc-1"], runs) == [
        *("bc, seed 1", "40 …", "", "", "", "", "", "0 of 2\n(4 to 8 episodes)", "−62.5 pp", "", "")
    ]
