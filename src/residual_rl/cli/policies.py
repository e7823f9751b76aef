"""The value of `--policy`: a base policy, the task's oracle, or a trained run."""

from __future__ import annotations

from pathlib import Path

from residual_rl.config import TrainCfg
from residual_rl.errors import ConfigError
from residual_rl.exported_policy import ExportedPolicy, find_policy
from residual_rl.registry import TASKS
from residual_rl.utils.text import shell_command

ORACLE = "oracle"
"""Name for the base policy `TaskSpec.oracle` of the task."""


def resolve_policy(
    task_id: str, policy: str | None, model: str | None, command: str
) -> tuple[ExportedPolicy | None, TrainCfg]:
    """The residual policy, if a run or a model is named, and the settings that go with the name.

    Args:
        task_id: the task.
        policy: a base policy's id, `oracle`, or the path of a run, a model's folder or a policy file.
            None: the task's base policy.
        model: which model of a run, see `find_policy`.
        command: the command, for messages.

    Raises:
        ConfigError: the task has no oracle, or the run was trained on another task.
    """
    if policy is not None and Path(policy).exists():
        exported = find_policy(policy, model).exported
        trained = exported.cfg.task_id
        if trained != task_id:
            raise ConfigError(
                f"{policy} was trained on task {trained!r}: "
                f"{shell_command(*command.split(), trained, '--policy', policy)}"
            )
        return exported, exported.cfg
    if policy == ORACLE:
        oracle = TASKS.get(task_id).oracle
        if oracle is None:
            planners = "".join(f"{name}, " for name in TASKS.get(task_id).planners)
            others = f"{planners}a base policy of `residual-rl list`, or a run folder"
            raise ConfigError(f"task {task_id!r} has no oracle; --policy takes {others}")
        policy = oracle
    return None, TrainCfg.default(task_id, policy)
