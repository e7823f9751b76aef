"""Without LeRobot, commands that need it fail with one line on how to install it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import il_case
import pytest
import tiny_runs

HINT = (
    "is not available; install it with `pip install residual-rl[lerobot]` (Python 3.12 or newer); in a"
    " checkout, `make setup-lerobot` creates an environment with it"
)


@pytest.fixture(autouse=True)
def no_lerobot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that LeRobot is not installed."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "lerobot":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_require_lerobot__commands_print_how_to_install_it(tmp_path: Path, fails: tiny_runs.Fails) -> None:
    demos = il_case.write_demos(tmp_path / "demos.h5")
    out = ["--out", tmp_path / "out"]
    text = fails(
        "eval", "so101-paper", "--base-policy", "lerobot", "--il-checkpoint", tmp_path, "--n-episodes", "2"
    )
    assert f"LeRobot, which the base policy 'lerobot' needs, {HINT}" in text
    assert f"LeRobot, which demos to-lerobot needs, {HINT}" in fails("demos", "to-lerobot", demos, *out)
    assert f"LeRobot, which demos from-lerobot needs, {HINT}" in fails(
        "demos", "from-lerobot", tmp_path, *out
    )
    assert f"LeRobot, which --algo act needs, {HINT}" in fails("imitate", demos, "--algo", "act", *out)
    assert not (tmp_path / "out").exists()
