"""Tasks by their Gymnasium ids. Gymnasium 1.x loads no plugins: an id is known once the package that has it is imported."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from residual_rl.registry import TaskSpec


def announce(spec: TaskSpec) -> None:
    """Make `spec` known to `gymnasium.make` and `gymnasium.make_vec` by its `gymnasium_id`, where it has one and Gymnasium is in use."""
    if spec.gymnasium_id is None or "gymnasium" not in sys.modules:
        return
    import gymnasium

    if spec.gymnasium_id not in gymnasium.registry:
        gymnasium.register(
            spec.gymnasium_id,
            entry_point="residual_rl.gymnasium_env:GymnasiumEnv",
            vector_entry_point="residual_rl.build:make_vec_env",
            kwargs={"task": spec.id},
        )


def register_envs() -> None:
    """Announce this package's tasks, and those that others have registered so far. Doing it twice is fine."""
    from residual_rl import tasks
    from residual_rl.registry import TASKS

    for module in pkgutil.iter_modules(tasks.__path__):
        importlib.import_module(f"{tasks.__name__}.{module.name}")
    for spec in TASKS.known():
        announce(spec)


def register_envs_with_gymnasium() -> None:
    """`register_envs`, now or as soon as Gymnasium is imported: importing it here would make every start of ours slower."""
    if "gymnasium" in sys.modules:
        register_envs()
    else:
        sys.meta_path.insert(0, _AfterGymnasium())


class _AfterGymnasium(MetaPathFinder):
    """Finds nothing itself: lets the usual finders find Gymnasium, and has `register_envs` called once it is imported."""

    _searching = False

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        if fullname != "gymnasium" or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            sys.meta_path.remove(self)
            register_envs()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
