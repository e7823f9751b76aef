"""The LeRobot plugin is a distribution that LeRobot discovers, and goes with this version of the package."""

from __future__ import annotations

import tomllib
from pathlib import Path

import residual_rl

PLUGIN = Path(__file__).parents[2] / "plugins" / "lerobot_policy_residual_rl"


def test_version__of_the_plugin_is_that_of_residual_rl_and_its_name_has_underscores() -> None:
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == PLUGIN.name  # LeRobot imports a module of the distribution's name
    assert (PLUGIN / "src" / project["name"] / "__init__.py").is_file()
    assert project["version"] == residual_rl.__version__
    assert project["dependencies"] == [f"residual-rl[mujoco]=={residual_rl.__version__}"]
