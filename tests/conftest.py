"""What all tests share: one torch thread, fixed seeds, and the skipping of what this machine cannot run."""

from __future__ import annotations

import functools
import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib: no test opens a window
# Before anything imports the hub's libraries: no test may ask the hub, or leave something in the user's
# cache.
os.environ["HF_HUB_OFFLINE"] = "1"
_hub_cache = tempfile.TemporaryDirectory(prefix="residual-rl-test-")
os.environ["HF_HOME"] = _hub_cache.name
# Tests sign with a key of their own, not with the user's.
_config_dir = tempfile.TemporaryDirectory(prefix="residual-rl-test-")
os.environ["RESIDUAL_RL_CONFIG_DIR"] = _config_dir.name

import hypothesis
import numpy as np
import pytest

pytest.register_assert_rewrite("base_policy_contract", "env_contract")

import tiny_runs
import torch

# A CUDA build loads triton here; after Mesa's OpenGL, with an LLVM of its own, that would crash
import torch._dynamo
from base_policy_cases import config_of as config_of

from residual_rl.cli.main import main
from residual_rl.envs.mujoco.gl_backend import gl_context_class
from residual_rl.errors import MissingDependencyError

SEED = 20260101

# The same examples on every run and machine: a test that fails once fails again.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fixed")


ENVIRONMENTS = {"maniskill": "mani_skill", "lerobot": "lerobot"}
"""Marker of the tests that need an environment of their own -> the library that is installed there."""
_NEEDS = re.compile(
    rf"^pytestmark = (?:\[[^\]]*?)?[^\n]*?pytest\.mark\.({'|'.join(ENVIRONMENTS)})\b", re.MULTILINE
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect modules only where they can be imported: `-m maniskill` and `-m lerobot` collect theirs
    alone."""
    if collection_path.suffix != ".py":
        return None
    found = _NEEDS.search(collection_path.read_text(encoding="utf-8"))
    needed = found[1] if found else None
    asked = config.option.markexpr
    if asked in ENVIRONMENTS:
        return True if needed != asked and collection_path.name.startswith("test_") else None
    return True if needed and importlib.util.find_spec(ENVIRONMENTS[needed]) is None else None


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(
        1
    )  # results do not depend on the machine's cores, and the simulator has them for itself


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU, and torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Each test starts from the same global generators, in whatever order and company it runs."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 (third-party code under test may use the global generator)
    torch.manual_seed(SEED)


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> tiny_runs.Fails:
    """Runs a command that must fail; gives the one line that it says."""
    return functools.partial(tiny_runs.failure, capfd)


@pytest.fixture(scope="session")
def _finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "made"
    assert (
        main(
            [
                "train",
                "so101-paper",
                *tiny_runs.FAILING_TINY,
                "--total-timesteps",
                "64",
                "--output-dir",
                str(path),
            ]
        )
        == 0
    )
    return path


@pytest.fixture
def run(_finished_run: Path, tmp_path: Path) -> Path:
    """A run folder to spoil."""
    path = tmp_path / "run"
    shutil.copytree(_finished_run, path)
    return path


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Where a test notes what it starts: that is ended with it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        with process:  # which closes its pipes and waits
            process.kill()


@pytest.fixture(scope="session")
def opengl() -> None:
    """Skips where nothing can be drawn, and says why."""
    try:
        gl_context_class()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def _no_workers_left() -> Iterator[None]:
    """End the processes that worker pools were forked from while the interpreter is still whole."""
    yield
    process = sys.modules.get("residual_rl.envs.workers.process")
    if process is not None:
        process.close_fork_servers()
