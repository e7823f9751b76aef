"""Damaged files of other programs, as in `benchmarks/damaged_files.py`: each is read or is a clear error."""

from __future__ import annotations

import pytest

import damaged_files


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["minari", "robomimic"])
def test_demonstrations__damaged_files_are_clear_errors(kind: str) -> None:
    found = damaged_files.measure(kind, 100, seed=1)
    assert found["opened"] + found["clear error"] == 100, found["problems"]
    assert found["clear error"] > 0
