"""Commands that are run again: earlier results are kept, and messages say what was done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import il_case
import pytest
from tiny_runs import Fails

from residual_rl.cli.main import main
from residual_rl.errors import ConfigError
from residual_rl.evaluation.eval_file import check_replaceable
from residual_rl.sweeps.grid import Trial
from residual_rl.sweeps.trial import next_command
from residual_rl.utils.files import write_json


def evaluation(seeds: int, *policies: str) -> dict[str, Any]:
    return {
        "format_version": 1,
        "episode_seeds": list(range(seeds)),
        "policies": {name: {} for name in policies},
    }


def test_check_replaceable__refuses_a_smaller_evaluation(tmp_path: Path) -> None:
    file = tmp_path / "eval.json"
    write_json(file, evaluation(200, "base", "residual"))
    with pytest.raises(ConfigError) as refused:
        check_replaceable(file, 2, 1)
    assert str(refused.value) == (
        f"{file} holds a larger evaluation (residual, base: 200 episodes) than this one (1 x 2); "
        "replace it with --overwrite, or choose another file with --output"
    )
    with pytest.raises(ConfigError):
        check_replaceable(file, 200, 1)  # the figures of the base would be lost
    check_replaceable(file, 200, 2)
    check_replaceable(file, 400, 1)


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_check_replaceable__other_files_may_be_replaced(content: str, tmp_path: Path) -> None:
    file = tmp_path / "eval.json"
    check_replaceable(file, 1, 1)
    file.write_text(content)
    check_replaceable(file, 1, 1)


@pytest.mark.slow
def test_eval__keeps_a_larger_evaluation_and_its_report(
    fails: Fails, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(run), "--n-episodes", "3"]) == 0
    kept = {name: (run / name).read_bytes() for name in ("eval.json", "report.html")}
    # smaller: refused before any work, from the run and from a model in it
    for target in (run, run / "best_model"):
        assert "holds a larger evaluation (residual: 3 episodes)" in fails(
            "eval", target, "--n-episodes", "2"
        )
    assert kept == {name: (run / name).read_bytes() for name in kept}
    # elsewhere
    capfd.readouterr()
    output = tmp_path / "small.json"
    assert main(["eval", str(run), "--n-episodes", "2", "--output", str(output)]) == 0
    assert f"keep the larger evaluation; this one is in {output}" in capfd.readouterr().out
    assert kept == {name: (run / name).read_bytes() for name in kept}
    assert len(json.loads(output.read_text())["episode_seeds"]) == 2
    assert "holds a larger evaluation" in fails("eval", run, "--n-episodes", "1", "--output", output)
    # on request
    assert main(["eval", str(run), "--n-episodes", "2", "--overwrite"]) == 0
    assert len(json.loads((run / "eval.json").read_text())["episode_seeds"]) == 2


def test_eval__output_of_a_base_policy_is_not_replaced_by_a_smaller_one(fails: Fails, tmp_path: Path) -> None:
    file = tmp_path / "base.json"
    write_json(file, evaluation(200, "base"))
    before = file.read_bytes()
    assert "holds a larger evaluation" in fails("eval", "so101-paper", "--n-episodes", "2", "--output", file)
    assert file.read_bytes() == before


def test_next_command__of_a_trained_trial_replaces_an_evaluation_on_other_episodes(tmp_path: Path) -> None:
    trial = Trial("a", "a", 1, 64, ("so101-paper",), tmp_path, (10, 2))
    trial.run.path.mkdir(parents=True)
    write_json(trial.run.summary_file, {"finished": True})
    write_json(trial.run.eval_file, evaluation(200, "residual"))
    command = next_command(trial)
    assert command is not None
    assert command[0] == "eval"
    assert "--overwrite" in command


# --- resuming what has finished -----------------------------------------------------------------------------


def test_train__resuming_a_finished_run_reports_that_nothing_was_trained(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", str(run)]) == 0
    out = capsys.readouterr().out
    assert "Nothing to train: the run has all of its 64 steps (--total-timesteps N trains up to N)" in out
    assert "Trained" not in out
    assert f"Run folder: {run}" in out
    # with more steps it is trained
    assert main(["train", "--resume", str(run), "--total-timesteps", "96"]) == 0
    assert "Trained 96 steps in" in capsys.readouterr().out


@pytest.mark.slow
def test_imitate__resuming_a_finished_training_reports_that_nothing_was_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demos, out = il_case.write_demos(tmp_path / "demos.h5"), tmp_path / "model"
    flags = ["--algo", "bc", "--total-steps", "3", "--eval-freq", "0", "--output-dir", str(out)]
    assert main(["imitate", str(demos), *flags]) == 0
    assert "Trained 3 steps in" in capsys.readouterr().out
    assert main(["imitate", "--resume", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Nothing to train: the model has all of its 3 steps (--total-steps N trains up to N)" in shown
    assert "Trained" not in shown
