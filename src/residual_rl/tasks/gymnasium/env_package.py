"""Packages of envs that have an environment of their own, and where to find it."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import residual_rl
from residual_rl.errors import MissingDependencyError
from residual_rl.registry import load
from residual_rl.tasks.gymnasium.config import GymnasiumCfg

if TYPE_CHECKING:
    from residual_rl.envs.gymnasium.vec_env import GymVecEnv

CHECKOUT = Path(residual_rl.__file__).parents[2]
"""The folder in which `make setup-NAME` creates environments."""
_ADAPTERS = Path(__file__).with_name("adapters")
_FACTORY = "residual_rl.tasks.gymnasium.factory:make"


@dataclass(frozen=True)
class EnvPackage:
    """A package of envs."""

    name: str
    """Its name, as users know it."""
    module: str
    """The module that must be importable."""
    setup: str
    """The target of the Makefile that installs it, without `setup-`: into `.venv-SETUP`."""
    install: str
    """Arguments of `pip install` for an environment of the user's."""
    adapter: str = ""
    """`FILE.py:Class` in the folder `adapters`. Empty: the envs follow Gymnasium's API."""
    env_modules: tuple[str, ...] = ()
    """Modules that register the envs."""

    def make(self, cfg: GymnasiumCfg, num_envs: int, num_threads: int, device: str) -> GymVecEnv:
        """The vec_env of `cfg`, where an empty `python` or `adapter` stands for those of this package."""
        complete = dataclasses.replace(
            cfg,
            python=cfg.python or self.python(),
            adapter=cfg.adapter or (self.adapter and str(_ADAPTERS / self.adapter)),
            env_modules=(*self.env_modules, *cfg.env_modules),
        )
        env: GymVecEnv = load(_FACTORY)(complete, num_envs, num_threads, device)
        return env

    def python(self) -> str:
        """The interpreter of `make setup-NAME`, or else "", this one.

        Raises `MissingDependencyError` if neither has the package.
        """
        own = CHECKOUT / f".venv-{self.setup}" / "bin" / "python"
        if own.exists():
            return str(own)
        if importlib.util.find_spec(self.module) is not None:
            return ""
        raise MissingDependencyError(
            self.name,
            f"install it with `make setup-{self.setup}`, or with `pip install {self.install}` in an"
            " environment that --python names",
        )
