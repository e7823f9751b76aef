"""What long benchmarks make once, resume and reuse. Commands are recorded instead of run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import resumable
from residual_rl.runs.run_folder import RunFolder
from resumable import evaluate_run, imitate, is_finished, make_file, outcomes, train_run, training_curve


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were run. Those with `--out` create an empty file and one beside it."""
    done: list[list[str]] = []

    def run_cli(*arguments: str, python: str = "python") -> None:
        done.append([python, *arguments])
        if arguments[0] == "demos":
            out = Path(arguments[arguments.index("--out") + 1])
            for path in (out, out.with_suffix(".json")):
                path.write_text("")

    monkeypatch.setattr(resumable, "run_cli", run_cli)
    return done


def write_summary(folder: Path, finished: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "training_summary.json").write_text(json.dumps({"finished": finished}))


def test_is_finished__reads_the_summary(tmp_path: Path) -> None:
    assert not is_finished(tmp_path / "none")
    write_summary(tmp_path / "stopped", False)
    write_summary(tmp_path / "done", True)
    assert not is_finished(tmp_path / "stopped")
    assert is_finished(tmp_path / "done")


def test_make_file__is_made_once_with_the_files_beside_it(tmp_path: Path, commands: list[list[str]]) -> None:
    for _ in range(2):
        make_file(tmp_path / "new" / "demos.h5", ["demos", "collect"], "other/python")
    assert len(commands) == 1
    assert commands[0][:3] == ["other/python", "demos", "collect"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        ".demos.h5.lock",
        "demos.h5",
        "demos.json",
    ]


def test_imitate__trains_resumes_or_reuses(tmp_path: Path, commands: list[list[str]]) -> None:
    model, demos = tmp_path / "bc", tmp_path / "demos.h5"
    start = ["imitate", str(demos), "--out", str(model)]
    imitate(model, demos, ["--algo", "bc"], "python")
    write_summary(model, False)
    imitate(model, demos, ["--algo", "bc"], "python")
    write_summary(model, True)
    imitate(model, demos, ["--algo", "bc"], "python")
    assert commands == [["python", *start, "--algo", "bc"], ["python", *start, "--resume"]]


def test_train_run__trains_resumes_or_reuses(tmp_path: Path, commands: list[list[str]]) -> None:
    run = RunFolder(tmp_path / "run")
    train_run(run, ["so101-paper"], 3, "python")
    write_summary(run.path, False)
    train_run(run, ["so101-paper"], 3, "python")
    write_summary(run.path, True)
    train_run(run, ["so101-paper"], 3, "python")
    path = str(run.path)
    assert commands == [
        ["python", "train", "so101-paper", "--seed", "3", "--output-dir", path],
        ["python", "train", "--resume", path],
    ]


def test_evaluate_run__replaces_a_smaller_evaluation(tmp_path: Path, commands: list[list[str]]) -> None:
    run = RunFolder(tmp_path)
    for episodes in (None, 8, 200):
        if episodes is not None:
            run.eval_file.write_text(json.dumps({"episode_seeds": list(range(episodes))}))
        evaluate_run(run, 200, "--compare-base", python="python")
    assert commands == 2 * [["python", "eval", str(tmp_path), "--n-episodes", "200", "--compare-base"]]


def test_training_curve__has_the_episodes_of_each_evaluation(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.eval_results.mkdir()
    for step, values in {0: [0.0, 1.0, 1.0, 1.0], 1000: [1.0, 0.0]}.items():
        content = json.dumps({"success_once": values, "return": values})
        (run.eval_results / f"step_{step:09d}.json").write_text(content)
    assert outcomes(run) == {0: [0.0, 1.0, 1.0, 1.0], 1000: [1.0, 0.0]}
    assert training_curve(run) == [[0, 0.75, 4], [1000, 0.5, 2]]
