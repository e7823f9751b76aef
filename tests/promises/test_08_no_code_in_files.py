"""Promise 8: no file can run code; equal states give identical files; earlier versions are readable."""

from __future__ import annotations

import ast
import json
import pickle
from collections.abc import Iterator
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
MODULES = sorted(PACKAGE.rglob("*.py"))

CAN_RUN_CODE_MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
CAN_RUN_CODE_CALLS = {
    "torch.load",
    "torch.save",  # only torch.load reads its files
    "torch.jit.load",
    "torch.export.load",
    "torch.hub.load",
    "yaml.load",
    "eval",
    "exec",
}
TRUSTED_READER = {"utils/trusted.py"}
"""Modules, relative to the package, that may read foreign formats behind `--trust-checkpoint`."""


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports_of(tree: ast.AST) -> Iterator[str]:
    """The modules that a source imports, also within functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_dangers__no_module_can_read_a_file_that_runs_code(path: Path) -> None:
    if relative(path) in TRUSTED_READER:
        return
    assert dangers(ast.parse(path.read_text(encoding="utf-8"))) == []


def dangers(tree: ast.AST) -> list[str]:
    """What in a source could run code from a file."""
    found = [name for name in imports_of(tree) if name.split(".")[0] in CAN_RUN_CODE_MODULES]
    found += [name for name in imports_of(tree) if name in CAN_RUN_CODE_CALLS]  # from torch import load
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in CAN_RUN_CODE_CALLS:
            found.append(f"{ast.unparse(node)} in line {node.lineno}")
        if (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and ast.unparse(node.value) != "False"
        ):
            found.append(f"allow_pickle in line {node.lineno}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from cloudpickle import loads",
        "import torch\ntorch.load('x', weights_only=True)",
        "from torch import load",
        "read = torch.load",
        "np.load('x', allow_pickle=True)",
        "eval('1')",
    ],
)
def test_dangers__finds_them(source: str) -> None:
    assert dangers(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "self.load('x')",
        "safetensors.torch.load_file('x')",
        "np.load('x', allow_pickle=False)",
    ],
)
def test_dangers__does_not_report_harmless_code(source: str) -> None:
    assert dangers(ast.parse(source)) == []


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
