"""Flags, files and Python names that the documentation mentions exist."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from doc_pages import PAGES, split
from paths import ROOT

from residual_rl.cli import foreign_names
from residual_rl.cli.main import COMMANDS, main, program_help
from residual_rl.registry import BASE_POLICIES, LEARNERS

HelpOf = Callable[[str], str]
PACKAGE = ROOT / "src" / "residual_rl"
FOLDERS = {path.name for parent in (ROOT, PACKAGE) for path in parent.iterdir() if path.is_dir()}
ILLUSTRATIVE = {"ppo.py", "ppo_rgb.py", "task.py", "config.py"}
"""Files of other packages, or of a folder that the reader makes."""
FOREIGN_FLAGS = {"--head", "--disable-usage-stats", "--include-dashboard", "--logdir", "--FLAG", "--no-FLAG"}
FOREIGN_FLAGS |= {"--env.settings", "--fps"}
FOREIGN_FLAGS |= {*foreign_names.FLAGS, *foreign_names.NO_FLAGS}
"""Flags of Ray, TensorBoard, LeRobot and the programs of `docs/coming_from.md`, and placeholders."""
DEMOS = (
    "collect so101-paper",
    "info demos.h5",
    "replay demos.h5",
    "to-lerobot demos.h5",
    "from-lerobot data",
)
HELP = [
    *(f"train so101-paper --learner {spec.id}" for spec in LEARNERS.all()),
    *(f"eval so101-paper --base-policy {spec.id}" for spec in BASE_POLICIES.all() if spec.id != "ik"),
    *("train maniskill", "eval maniskill --base-policy ik", "train --resume runs/x", "eval runs/x"),
    "train gymnasium",
    "compare runs/x runs/x",
    *("imitate demos.h5", "convert x.pt", "distill runs/x", "serve jacobian --task so101-paper"),
    *("deploy jacobian --task so101-paper", "train-robot so101-paper", "train-robot --resume runs/x"),
    "export runs/x",
    *("sweep so101-paper", "sweep --resume x", "view so101-paper", "doctor so101-paper", "bench so101-paper"),
    *(f"demos {subcommand}" for subcommand in DEMOS),
]
"""Command lines that list all flags between them."""


def inline(page: str) -> list[str]:
    """The texts within backticks in a page's prose and tables."""
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", split(page)[0])]


@pytest.fixture(scope="module")
def help_of(documented: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HelpOf]:
    """Return a function for the `--help` of a command, in a folder with a run `runs/x`."""
    folder = tmp_path_factory.mktemp("help")
    (folder / "runs").mkdir()
    (folder / "runs" / "x").symlink_to(documented / "run")

    @cache
    def help_of(line: str) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([*line.split(), "--help"])
        return out.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLUMNS", "400")  # no flag is cut
        yield help_of


@pytest.fixture(scope="module")
def flags(help_of: HelpOf) -> set[str]:
    """All flags of all commands, as `--help` lists them, and those of the benchmarks."""
    found = set(re.findall(r"--[a-z][\w.-]*", program_help()))
    for line in HELP:
        found |= set(re.findall(r"--[a-z][\w.-]*", help_of(line)))
    for script in (ROOT / "benchmarks").glob("*.py"):
        found |= set(re.findall(r'"(--[a-z][\w-]*)"', script.read_text()))
    return found


@pytest.mark.parametrize("line", HELP)
def test_help__lists_flags(line: str, help_of: HelpOf) -> None:
    assert line.split()[0] in COMMANDS
    assert len(re.findall(r"--[a-z][\w.-]*", help_of(line))) > 1


LEROBOT_FLAGS = ("--robot.", "--teleop.", "--env.", "--dataset.", "--policy.", "--eval.")
"""Flags of LeRobot's commands; those in code blocks are tested with LeRobot."""


@pytest.mark.parametrize("page", PAGES)
def test_names__flags_exist(page: str, flags: set[str]) -> None:
    texts = [text for text in inline(page) if not text.startswith(("ray ", "pip ", "make ", "tensorboard "))]
    mentioned = {
        flag.rstrip(".…") for text in texts for flag in re.findall(r"(?<![\w-])--[A-Za-z][\w.-]*\*?", text)
    }
    unknown = set()
    for flag in mentioned - FOREIGN_FLAGS:
        prefix = flag.removesuffix("*")
        if flag.endswith("*"):
            known = any(name.startswith(prefix) for name in flags)
        else:
            known = flag in flags or flag.replace("_", "-") in flags
        if not known and not flag.startswith(LEROBOT_FLAGS):
            unknown.add(flag)
    assert unknown == set()


@pytest.mark.parametrize("page", PAGES)
def test_names__source_files_exist(page: str) -> None:
    missing = []
    for text in inline(page):
        is_source = text.endswith(".py") and " " not in text and text not in ILLUSTRATIVE
        is_folder = re.fullmatch(r"[\w/]+/", text) is not None and text.split("/")[0] in FOLDERS - {"runs"}
        if is_source or is_folder:
            places = (ROOT, PACKAGE, ROOT / "benchmarks", ROOT / "tests")
            if not any((place / text).exists() for place in places):
                missing.append(text)
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_names__python_names_can_be_imported(page: str) -> None:
    names = {name for text in inline(page) for name in re.findall(r"\bresidual_rl(?:\.\w+)+", text)}
    names |= set(re.findall(r"^::: ([\w.]+)$", split(page)[0], re.MULTILINE))
    for name in sorted(names - {"residual_rl.base_policies", "residual_rl.learners", "residual_rl.tasks"}):
        if name.startswith("residual_rl.tasks.maniskill.goals"):  # an entry point group
            continue
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and not error.name.startswith("residual_rl"):
                continue  # the module is there, and needs a package of another environment
            assert hasattr(importlib.import_module(module), attribute), name
