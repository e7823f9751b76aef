"""Learn a small bounded residual on top of any frozen base policy.

The public names are imported on first use, so that `import residual_rl` and the command line's help stay
quick.
"""

from __future__ import annotations

import importlib
from typing import Any

from residual_rl.registry import TASKS

__version__ = "0.1.0"

_MODULE_OF = {
    "BasePolicy": "residual_rl.types",
    "BasePolicySpec": "residual_rl.registry",
    "ConfigError": "residual_rl.errors",
    "Learner": "residual_rl.types",
    "LearnerSpec": "residual_rl.registry",
    "Metrics": "residual_rl.types",
    "MissingDependencyError": "residual_rl.errors",
    "Obs": "residual_rl.types",
    "Physics": "residual_rl.envs.task",
    "Pose": "residual_rl.robots.arm_driver",
    "Quantities": "residual_rl.envs.task",
    "ResidualEnv": "residual_rl.residual_env",
    "ResidualRLError": "residual_rl.errors",
    "ResidualVectorWrapper": "residual_rl.wrappers",
    "ResidualWrapper": "residual_rl.wrappers",
    "State": "residual_rl.types",
    "Task": "residual_rl.envs.task",
    "TaskEnv": "residual_rl.envs.task_env",
    "TaskSpec": "residual_rl.registry",
    "TrainCfg": "residual_rl.config",
    "Transition": "residual_rl.types",
    "VecEnv": "residual_rl.envs.vec_env",
    "compose": "residual_rl.composition",
    "make_residual_env": "residual_rl.factory",
    "make_vec_env": "residual_rl.factory",
    "register_base_policy": "residual_rl.registry",
    "register_learner": "residual_rl.registry",
    "register_task": "residual_rl.registry",
    "uniform": "residual_rl.utils.seeding",
}
"""The module that defines each public name."""

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next access skips this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Gymnasium 1.x does not load plugins: importing this package registers the ids of the tasks.
TASKS.import_own()
