"""What a run deploys, in words, and from a file that may be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from residual_rl.errors import CheckpointError
from residual_rl.evaluation.deployment import Deployment, deployment_text
from residual_rl.utils.files import plain

LOST = Deployment(
    policy="base",
    confirmed=False,
    step=96,
    episodes=64,
    max_episodes=200,
    success_rate=0.5,
    base_success_rate=0.53125,
    won=2,
    lost=4,
    gain=-0.03125,
    interval=(-0.2, 0.125),
    e_value=0.4,
)


def test_deployment__text_and_note_name_the_policy_and_the_reason() -> None:
    assert LOST.text == (
        "No gain over the base policy on 64 fresh episodes (−3.1 pp [−20.0, 12.5]), so best_model is the "
        "base policy (residual_scale 0)."
    )
    assert LOST.note == "best_model: the base policy, no gain shown"
    unknown = Deployment("residual", False, 96)
    assert unknown.text.endswith("not confirmed.")
    assert unknown.note == "best_model: the residual, not confirmed"


def test_deployment_text__reads_the_summary_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "training_summary.json"
    assert deployment_text(file) is None
    file.write_text("{}")
    assert deployment_text(file) is None
    file.write_text(json.dumps({"deployment": plain(LOST)}))
    assert deployment_text(file) == LOST.text


@pytest.mark.parametrize(
    "change",
    [
        {"policy": "other"},
        {"gain": "a"},
        {"gain": 10**400},
        {"interval": [0.0]},
        {"interval": [None, None]},
        {"episodes": "64"},
        {"unknown": 1},
    ],
)
def test_deployment_text__damaged_summary_is_an_error_with_its_name(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    file = tmp_path / "training_summary.json"
    for content in (json.dumps({"deployment": {**plain(LOST), **change}}), '{"deployment": [1]}', "[]", "{"):
        file.write_text(content)
        with pytest.raises(CheckpointError, match=r"training_summary\.json is damaged"):
            deployment_text(file)
