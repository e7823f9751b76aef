"""Paths that belong to a run, as given to `--resume` and to commands that take a run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from residual_rl.errors import ConfigError
from residual_rl.runs.locate import enclosing_run, run_to_resume


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two checkpoints and a model, all of them empty."""
    run = tmp_path / "run"
    for name in ("checkpoints/step_000000032", "checkpoints/step_000000064", "best_model/policy"):
        file = run / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for folder in (run, run / "best_model"):
        (folder / "config.json").write_text('{"base_policy_id": "zero"}')
    return run


@pytest.mark.parametrize(
    "part", [".", "config.json", "metrics.jsonl", "checkpoints", "checkpoints/step_000000064.safetensors"]
)
def test_run_to_resume__accepts_parts_of_a_run(run: Path, part: str) -> None:
    (run / "metrics.jsonl").touch()
    assert run_to_resume(run / part, "train") == run


@pytest.mark.parametrize("part", ["best_model", "best_model/policy.safetensors", "best_model/config.json"])
def test_run_to_resume__refuses_a_model_and_names_its_run(run: Path, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_to_resume(run / part, "train")
    assert str(caught.value) == (
        f"{run / part} is an exported policy, without the training state that resuming needs; to resume the "
        f"run that it belongs to: residual-rl train --resume {run}"
    )


def test_run_to_resume__refuses_a_model_outside_of_a_run(run: Path, tmp_path: Path) -> None:
    model = (run / "best_model").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"without the training state that resuming needs$"):
        run_to_resume(model, "train")


def test_run_to_resume__refuses_an_earlier_checkpoint(run: Path) -> None:
    earlier = run / "checkpoints" / "step_000000032.safetensors"
    with pytest.raises(ConfigError, match="is not the newest checkpoint") as caught:
        run_to_resume(earlier, "train")
    assert f"then: residual-rl train --resume {run}" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "command"), [("demos", "imitate"), ("distill", "distill"), ("grid", "sweep")]
)
def test_run_to_resume__names_the_command_of_another_kind_of_run(
    tmp_path: Path, key: str, command: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({key: {}}))
    assert run_to_resume(tmp_path, command) == tmp_path
    with pytest.raises(ConfigError, match=f"resume it with: residual-rl {command} --resume {tmp_path}"):
        run_to_resume(tmp_path, "train")


def test_enclosing_run__returns_other_paths_unchanged(run: Path, tmp_path: Path) -> None:
    assert enclosing_run(run / "checkpoints") == run
    for path in (tmp_path / "nowhere" / "at" / "all", tmp_path):
        assert enclosing_run(path) == path
        assert run_to_resume(path, "train") == path


def test_run_to_resume__does_not_wait_for_a_pipe_in_place_of_the_settings(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")  # reading it would never end
    assert run_to_resume(tmp_path, "train") == tmp_path
