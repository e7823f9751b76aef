"""The environments that `make setup-metaworld` and the like create."""

from __future__ import annotations

import pytest

from residual_rl.registry import TASKS, TaskSpec, load
from residual_rl.tasks.gymnasium.env_package import CHECKOUT, EnvPackage

TASK_IDS = ("adroit", "fetch", "metaworld", "pusht")


def package_of(spec: TaskSpec) -> EnvPackage:
    return load(spec.make.replace(":make", ":PACKAGE"))


def require(task_id: str) -> EnvPackage:
    """The package of a task. Skips the test if its environment is missing."""
    package = package_of(TASKS.get(task_id))
    if not (CHECKOUT / f".venv-{package.setup}" / "bin" / "python").exists():
        pytest.skip(f"needs `make setup-{package.setup}`")
    return package
