"""`--safety` in training is stamped in the run, and evaluations of the run apply it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import CLI_TINY

from residual_rl.cli.main import main
from residual_rl.evaluation import compare
from residual_rl.runs.run_folder import RunFolder


@pytest.mark.slow
def test_safety__a_run_is_evaluated_with_the_limits_of_its_training(tmp_path: Path, monkeypatch) -> None:
    run = tmp_path / "run"
    flags = [*CLI_TINY, "--total-timesteps", "32", "--eval-freq", "0", "--safety", "--max-jump", "0.01"]
    assert main(["train", "so101-paper", *flags, "--output-dir", str(run)]) == 0
    stamped = json.loads(RunFolder(run).config_file.read_text())["safety"]
    assert (stamped["safety"], stamped["max_jump"], stamped["max_step"]) == (True, 0.01, 0.1)
    made = []
    make = compare.make_residual_env

    def remember(*args, **kwargs):
        made.append(make(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(compare, "make_residual_env", remember)
    for changes, expected in ([], {}), (["--no-safety"], {"safety.safety": [True, False]}):
        assert main(["eval", str(run), "--n-episodes", "2", *changes]) == 0
        settings = json.loads((run / "eval.json").read_text())["settings"]
        assert settings["changed_from_training"] == expected
        assert (made[-1].vec_env.limits is None) is bool(changes)
