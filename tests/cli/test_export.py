"""`residual-rl export`: the folder, its default place, and errors of one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import Fails

from residual_rl.cli.main import main
from residual_rl.deployment.lerobot_folder import read


def test_export__writes_the_best_model_unless_another_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--format", "lerobot", "--output-dir", str(tmp_path / "policy")]) == 0
    out = capsys.readouterr().out
    assert f"Policy: {tmp_path / 'policy'}" in out
    assert "Base policy: jacobian" in out
    assert main(["export", str(run), "--model", "final", "--output-dir", str(tmp_path / "final")]) == 0
    # untrained runs of this size are deployed without their residual
    scales = [read(tmp_path / name)._exported.residual_scale for name in ("policy", "final")]
    assert scales[0] == 0.0 < scales[1]


def test_export__makes_a_folder_in_runs(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run)]) == 0
    (config,) = tmp_path.glob("runs/export-*/policy/config.json")
    read(config.parent)


def test_export__refuses_what_it_cannot_write(run: Path, tmp_path: Path, fails: Fails) -> None:
    assert "has best, final" in fails("export", run, "--model", "interrupted", "--output-dir", tmp_path / "x")
    (tmp_path / "y").mkdir()
    assert "already exists" in fails("export", run, "--output-dir", tmp_path / "y")
    assert "does not exist" in fails("export", tmp_path / "nothing")
