"""`residual-rl list`: the registered tasks, base policies, learners and presets."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from residual_rl.cli.flags import parse_flags
from residual_rl.registry import BASE_POLICIES, LEARNERS, TASKS
from residual_rl.utils.console import Console


def main(argv: Sequence[str]) -> int:
    """Print a table of each kind."""
    parse_flags({}, argv, "list", "Show the registered tasks, base policies, learners and presets.")
    console = Console()
    tasks = Table("task", "description", "default base policy", title="Tasks", title_justify="left")
    for task in TASKS.all():
        tasks.add_row(task.id, task.summary, task.base_policy)
    policies = Table("base policy", "description", title="Base policies", title_justify="left")
    for policy in BASE_POLICIES.all():
        policies.add_row(policy.id, policy.summary)
    learners = Table("learner", "description", title="Learners", title_justify="left")
    for learner in LEARNERS.all():
        learners.add_row(learner.id, learner.summary)
    presets = Table("preset", "task", "source", title="Presets (train --preset)", title_justify="left")
    for task in TASKS.all():
        for preset in task.presets:
            presets.add_row(preset.name, task.id, preset.source)
    for table in (tasks, policies, learners, presets):
        console.print(table)
    return 0
