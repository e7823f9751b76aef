"""Checkpoint files with a correct checksum whose description is not what this package writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_safetensors

from residual_rl.errors import CheckpointError
from residual_rl.runs import checkpoint

TENSORS = {"x": torch.ones(3)}


def write(path: Path, **changes: Any) -> Path:
    """A file as a sender could make it."""
    document: dict[str, Any] = {"format_version": 1, "kind": "policy", "state": {"x": {"$tensor": "x"}}}
    document |= changes
    document["sha256"] = checkpoint._digest(document, TENSORS)
    path.write_bytes(save_safetensors(TENSORS, {"residual_rl": json.dumps(document)}))
    return path


def test_load__reads_the_file_without_changes(tmp_path: Path) -> None:
    assert torch.equal(checkpoint.load(write(tmp_path / "f"), "policy")["x"], torch.ones(3))


@pytest.mark.parametrize(
    "changes",
    [
        {"state": [1]},
        {"state": 5},
        {"state": None},
        {"state": {"x": {"$tensor": []}}},
        {"state": {"x": {"$tensor": {}}}},
        {"state": {"x": {"$tensor": "y"}}},
        {"state": {"x": {"$segment": {}}}},
        {"state": {"x": [{"$tensor": "x"}] * 2}},
        {"segments": [1]},
        {"segments": 5},
        {"segments": {"../x": 5}},
        {"format_version": None},
        {"format_version": []},
    ],
    ids=str,
)
def test_load__odd_descriptions_are_errors(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path / "f")):
        checkpoint.load(write(tmp_path / "f", **changes), "policy")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format_version": 1e400}', '{"format_version": NaN}', "[]"]
)
def test_load__texts_that_are_no_description_are_errors(text: str, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(save_safetensors(TENSORS, {"residual_rl": text}))
    with pytest.raises(CheckpointError, match="its description is unreadable"):
        checkpoint.load(path, "policy")
