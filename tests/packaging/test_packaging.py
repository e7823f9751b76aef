"""The package as a whole: what it exports, what it must not contain, how quickly it answers, and the wheel made of it."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT
from tiny_runs import cpu_seconds

import residual_rl

PACKAGE = ROOT / "src" / "residual_rl"
MODULES = sorted(PACKAGE.rglob("*.py"))

MAX_LINES = 450
MAX_HELP = 5.0
"""Times as long as importing numpy."""

CAN_RUN_CODE_MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
CAN_RUN_CODE_CALLS = {
    "torch.load",
    "torch.save",  # what it writes, only torch.load reads
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
    """The modules that a source imports, at its top or within functions, but not for the type checker alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def checkout_files() -> list[Path]:
    """The files that git tracks, or would if they were added."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def command_path() -> str:
    """The installed `residual-rl` of the environment that runs the tests."""
    path = shutil.which("residual-rl", path=str(Path(sys.executable).parent))
    assert path is not None, "residual-rl is not installed beside this Python: make setup"
    return path


def test_one_version_everywhere() -> None:
    version = residual_rl.__version__
    assert importlib.metadata.version("residual-rl") == version
    assert (
        re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1].strip("\"'")
        == version
    )  # type: ignore[index]
    newest = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


@pytest.mark.parametrize("name", residual_rl.__all__)
def test_public_name_can_be_imported(name: str) -> None:
    assert getattr(residual_rl, name) is not None
    assert name in dir(residual_rl)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        residual_rl.no_such_name  # noqa: B018


@pytest.mark.parametrize("module", ["residual_rl", "residual_rl.cli.main"])
def test_import_leaves_heavy_libraries_alone(module: str) -> None:
    heavy = ["torch", "mujoco", "matplotlib", "tensorboard", "stable_baselines3"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("imports", ["gymnasium, residual_rl", "residual_rl, gymnasium"])
def test_importing_the_package_registers_the_gymnasium_ids(imports: str) -> None:
    code = f"import {imports}; print(gymnasium.spec('residual_rl/SO101Paper-v0').id)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "residual_rl/SO101Paper-v0", run.stderr


@pytest.mark.slow
def test_help_is_quick() -> None:
    """0.28 CPU seconds were measured, and 0.17 for importing numpy alone; torch would add 1.8."""
    commands = {"help": [command_path(), "--help"], "numpy": [sys.executable, "-c", "import numpy"]}
    runs = [{name: cpu_seconds(*command)[0] for name, command in commands.items()} for _ in range(5)]
    best = {name: min(run[name] for run in runs) for name in commands}
    assert best["help"] < MAX_HELP * best["numpy"], runs


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_module_is_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines < MAX_LINES, f"{relative(path)} has {lines} lines: one idea each"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_module_has_a_docstring(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not source.strip() or ast.get_docstring(ast.parse(source)), relative(path)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_module_reads_no_file_that_can_run_code(path: Path) -> None:
    if relative(path) in TRUSTED_READER:
        return
    assert dangers(ast.parse(path.read_text(encoding="utf-8"))) == []


def dangers(tree: ast.AST) -> list[str]:
    """What in a source could run code that a file holds."""
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
def test_the_search_for_dangers_finds_them(source: str) -> None:
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
def test_the_search_for_dangers_leaves_the_harmless_alone(source: str) -> None:
    assert dangers(ast.parse(source)) == []


MACHINE_PATH = re.compile(rf"(?<![\w./:>)}}~-])/(?:{'|'.join(['work', 'tmp'])})(?:/|\b)")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("'/{}/x'", True),
        ("cd /{}", True),
        ("(/{}/)", True),
        ("a/{}/x", False),
        ("https://x.org/{}", False),
        ("/{}s", False),
        ("./{}", False),
    ],
)
@pytest.mark.parametrize("root", ["work", "tmp"])
def test_the_search_for_paths_finds_them(root: str, text: str, found: bool) -> None:
    assert bool(MACHINE_PATH.search(text.format(root))) == found


def test_no_path_of_one_machine_in_the_files() -> None:
    found = []
    for path in checkout_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        lines = enumerate(text.splitlines(), 1)
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
            for number, line in lines
            if MACHINE_PATH.search(line)
        ]
    assert found == []


def test_every_dependency_is_pinned_for_development() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), (
                f"{line!r} is not one public version"
            )
            name, version = line.split("==")
            pins[re.sub(r"[-_.]+", "-", name).lower()] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["sb3"],
        *project["optional-dependencies"]["dev"],
    ]
    names = {re.split(r"[\[<>=! ]", requirement)[0].lower() for requirement in wanted} - {"residual-rl"}
    assert names - pins.keys() == set()
    assert pins["torch"] == "2.13.0"


@pytest.mark.slow
def test_wheel_is_complete_and_works_in_a_fresh_environment() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "check_wheel.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
