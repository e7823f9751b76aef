"""Promise 8: no file can run code; equal states give identical files; earlier versions are readable."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import DATA, ROOT
from safetensors import safe_open

from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.runs.checkpoint import load, save
from residual_rl.utils.trusted import read_exported_program, read_saved_dict, read_sb3_policy, read_state_dict

PACKAGE = ROOT / "src" / "residual_rl"


def test_ruff__no_module_reads_files_that_can_run_code() -> None:
    """`utils/trusted.py` is exempt in pyproject.toml; tests/packaging shows that ruff finds each call."""
    rules = "TID251,S102,S307"
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", rules, PACKAGE]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


class _Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_load__refuses_a_pickle_without_running_it(tmp_path: Path) -> None:
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(_Payload(tmp_path / "ran")))
    with pytest.raises(CheckpointError):
        load(tmp_path / "evil.safetensors", "checkpoint")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("read", [read_sb3_policy, read_exported_program, read_state_dict, read_saved_dict])
def test_trusted__reads_a_foreign_file_only_with_consent(read: Any, tmp_path: Path) -> None:
    path = tmp_path / "foreign.pt"
    path.write_bytes(pickle.dumps(_Payload(tmp_path / "ran")))
    with pytest.raises(ConfigError, match=r"foreign\.pt.*--trust-checkpoint"):
        read(path, False)
    assert not (tmp_path / "ran").exists()


def test_save__equal_states_give_identical_files_in_any_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    save(tmp_path / "a.safetensors", {"x": torch.ones(3), "step": 1}, "policy")
    save(tmp_path / "other" / "b.safetensors", {"step": 1, "x": torch.ones(3)}, "policy")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "other" / "b.safetensors").read_bytes()


@pytest.mark.parametrize("path", sorted(DATA.glob("golden_*.safetensors")), ids=lambda path: path.stem)
def test_load__reads_the_golden_file_of_each_version(path: Path) -> None:
    with safe_open(path, "pt") as file:
        kind = json.loads(file.metadata()["residual_rl"])["kind"]
    assert load(path, kind)
