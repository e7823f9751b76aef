"""Shared by all tests: one torch thread, fixed seeds, common fixtures, and skips for missing libraries."""

from __future__ import annotations

import functools
import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Under nohup, tests of SIGHUP and the processes they start would ignore it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Set before the import of matplotlib, so that no test opens a window.
os.environ.setdefault("MPLBACKEND", "Agg")
# Set before the import of the Hugging Face libraries, so that no test uses the hub or the user's cache.
os.environ["HF_HUB_OFFLINE"] = "1"
_hub_cache = tempfile.TemporaryDirectory(prefix="residual-rl-test-")
os.environ["HF_HOME"] = _hub_cache.name
# Tests sign with a key of their own, not with the user's.
_config_dir = tempfile.TemporaryDirectory(prefix="residual-rl-test-")
os.environ["RESIDUAL_RL_CONFIG_DIR"] = _config_dir.name
# Nor do they read or fill the user's evaluations of base policies.
_cache_dir = tempfile.TemporaryDirectory(prefix="residual-rl-test-")
os.environ["RESIDUAL_RL_CACHE_DIR"] = _cache_dir.name

import hypothesis
import numpy as np
import pytest

pytest.register_assert_rewrite("base_policy_contract", "env_contract")

import tiny_runs
import torch

# A CUDA build loads triton here. After Mesa's OpenGL, which has another LLVM, that would crash.
import torch._dynamo
from base_policy_cases import config_of as config_of

from residual_rl.cli.main import main
from residual_rl.envs.mujoco.gl_backend import gl_context_class
from residual_rl.errors import MissingDependencyError

SEED = 20260101

# Use the same examples on every run and machine, so that failures are reproducible.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fixed")


ENVIRONMENTS = {"maniskill": "mani_skill", "lerobot": "lerobot"}
"""Marker of tests with a separate environment -> library that is installed only there."""
_NEEDS = re.compile(
    rf"^pytestmark = (?:\[[^\]]*?)?[^\n]*?pytest\.mark\.({'|'.join(ENVIRONMENTS)})\b", re.MULTILINE
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect only modules that can be imported: `-m maniskill` and `-m lerobot` collect only those with the
    marker."""
    if collection_path.suffix != ".py":
        return None
    found = _NEEDS.search(collection_path.read_text(encoding="utf-8"))
    needed = found[1] if found else None
    marker = config.option.markexpr
    if marker in ENVIRONMENTS:
        return True if needed != marker and collection_path.name.startswith("test_") else None
    return True if needed and importlib.util.find_spec(ENVIRONMENTS[needed]) is None else None


def pytest_configure(config: pytest.Config) -> None:
    # Results do not depend on the number of cores, and the simulator can use all of them.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU, and torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Seed the global generators, so that tests do not depend on their order."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 (third-party code under test may use the global generator)
    torch.manual_seed(SEED)


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> tiny_runs.Fails:
    """Runs a command that must fail and returns its one line of error message."""
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
    """A copy of a run folder, which a test may modify."""
    path = tmp_path / "run"
    shutil.copytree(_finished_run, path)
    return path


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """A list for the processes that a test starts; they are killed after it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        with process:  # which closes its pipes and waits
            process.kill()


@pytest.fixture(scope="session")
def opengl() -> None:
    """Skip the test, with the reason, if OpenGL is not available."""
    try:
        gl_context_class()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def _no_workers_left() -> Iterator[None]:
    """Close the fork servers of worker pools before the interpreter shuts down."""
    yield
    process = sys.modules.get("residual_rl.envs.workers.process")
    if process is not None:
        process.close_fork_servers()
