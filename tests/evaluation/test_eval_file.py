"""Evaluation files of wrong types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from residual_rl.errors import CheckpointError
from residual_rl.evaluation.eval_file import read_evaluation

SUMMARY: dict[str, Any] = {"mean": 0.5, "interval": [0.0, 1.0], "per_episode": {"7": 0.5}}


def document(summary: Any = SUMMARY, **values: Any) -> dict[str, Any]:
    policies = {"residual": {"return": summary}}
    return {"format_version": 1, "policies": policies, "episode_seeds": [7], "settings": {}, **values}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (document({"mean": 0.5, "per_episode": {}}), "policies.residual.return"),
        (document({**SUMMARY, "interval": [0.0]}), "policies.residual.return"),
        (document({**SUMMARY, "interval": [[], 1.0]}), "policies.residual.return"),
        (document({**SUMMARY, "mean": 10**400}), "policies.residual.return"),
        (document({**SUMMARY, "per_episode": {"x": 1.0}}), "policies.residual.return"),
        (document(policies={"residual": 1}), "policies.residual"),
        (document(episode_seeds=0), "episode_seeds"),
        (document(paired=[]), "paired"),
    ],
)
def test_read_evaluation__names_a_part_of_a_wrong_type(content: Any, problem: str, tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"damaged: {problem} is missing or of a wrong type"):
        read_evaluation(tmp_path / "eval.json")


def test_read_evaluation__accepts_an_evaluation_without_an_interval(tmp_path: Path) -> None:
    content = document({**SUMMARY, "interval": None})
    (tmp_path / "eval.json").write_text(json.dumps(content))
    assert read_evaluation(tmp_path / "eval.json") == content
