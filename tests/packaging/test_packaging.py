"""The package as a whole: public names, contents, start-up time and the wheel."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from paths import ROOT
from tiny_runs import cpu_seconds

import residual_rl

PACKAGE = ROOT / "src" / "residual_rl"
MODULES = sorted(PACKAGE.rglob("*.py"))

MAX_HELP = 5.0
"""Times as long as importing numpy."""


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


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


def test_version__is_the_same_everywhere() -> None:
    version = residual_rl.__version__
    assert importlib.metadata.version("residual-rl") == version
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert cited[1].strip("\"'") == version
    newest = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


@pytest.mark.parametrize("name", residual_rl.__all__)
def test_all__each_public_name_can_be_imported(name: str) -> None:
    assert getattr(residual_rl, name) is not None
    assert name in dir(residual_rl)


def test_package__an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        residual_rl.no_such_name  # noqa: B018


@pytest.mark.parametrize("module", ["residual_rl", "residual_rl.cli.main"])
def test_import__does_not_import_heavy_libraries(module: str) -> None:
    heavy = ["torch", "mujoco", "matplotlib", "scipy", "tensordict", "tensorboard", "stable_baselines3"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("imports", ["gymnasium, residual_rl", "residual_rl, gymnasium"])
def test_import__registers_the_gymnasium_ids(imports: str) -> None:
    code = f"import {imports}; print(gymnasium.spec('residual_rl/SO101Paper-v0').id)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "residual_rl/SO101Paper-v0", run.stderr


@pytest.mark.slow
def test_help__is_quick() -> None:
    """0.28 CPU seconds were measured, and 0.17 for importing numpy alone; torch would add 1.8."""
    commands = {"help": [command_path(), "--help"], "numpy": [sys.executable, "-c", "import numpy"]}
    runs = [{name: cpu_seconds(*command)[0] for name, command in commands.items()} for _ in range(5)]
    best = {name: min(run[name] for run in runs) for name in commands}
    assert best["help"] < MAX_HELP * best["numpy"], runs


def ruff_codes(source: str, path: str) -> set[str]:
    """The codes of the rules that `source` would break in a file of this repository."""
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--no-cache",
        "--output-format",
        "json",
        "--stdin-filename",
        path,
        "-",
    ]
    run = subprocess.run(command, input=source, cwd=ROOT, capture_output=True, text=True, check=False)
    return {found["code"] for found in json.loads(run.stdout)}


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("import pickle", "TID251"),
        ("def f():\n    from cloudpickle import loads", "TID251"),
        ("import torch\ntorch.load('x', weights_only=True)", "TID251"),
        ("from torch import load", "TID251"),
        ("import torch\nread = torch.load", "TID251"),
        ("eval('1')", "S307"),
        ("exec('1')", "S102"),
        ("x = 1", "D100"),
        ("class Foo: ...", "D101"),
        ("def foo(): ...", "D103"),
    ],
)
def test_ruff__finds_code_in_files_and_missing_docstrings(source: str, code: str) -> None:
    assert code in ruff_codes(source, "src/residual_rl/new.py")


def test_ruff__allows_harmless_and_trusted_readers() -> None:
    harmless = '"""New."""\nmodel.eval()\nself.load("x")\nsafetensors.torch.load_file("x")\n'
    assert not {"TID251", "S102", "S307"} & ruff_codes(harmless, "src/residual_rl/new.py")
    assert "TID251" not in ruff_codes("import torch\ntorch.load('x')", "src/residual_rl/utils/trusted.py")


def test_numpy__reads_no_pickles() -> None:
    """Ruff has no rule for `allow_pickle`."""
    allowed = re.compile(r"allow_pickle\s*=\s*(?!False\b)")
    assert [relative(path) for path in MODULES if allowed.search(path.read_text(encoding="utf-8"))] == []


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
def test_machine_path__finds_paths_of_one_machine(root: str, text: str, found: bool) -> None:
    assert bool(MACHINE_PATH.search(text.format(root))) == found


def test_files__contain_no_path_of_one_machine() -> None:
    found = []
    for path in checkout_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image
        lines = enumerate(text.splitlines(), 1)
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
            for number, line in lines
            if MACHINE_PATH.search(line)
        ]
    assert found == []


def test_constraints__pin_every_dependency() -> None:
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
def test_wheel__is_complete_and_works_in_a_new_environment() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "check_wheel.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
