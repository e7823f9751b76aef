"""`residual-rl list`: the registered tasks and base policies."""

from __future__ import annotations

from collections.abc import Sequence

import tyro
from rich.console import Console
from rich.table import Table

from residual_rl.registry import BASE_POLICIES, TASKS


def main(argv: Sequence[str]) -> int:
    """Print two tables."""
    tyro.cli(_nothing, args=list(argv), prog="residual-rl list", description="Show the registered tasks and base policies.")
    console = Console()
    tasks = Table("task", "what", "default base policy", title="Tasks", title_justify="left")
    for task in TASKS.all():
        tasks.add_row(task.id, task.summary, task.base_policy)
    policies = Table("base policy", "what", title="Base policies", title_justify="left")
    for policy in BASE_POLICIES.all():
        policies.add_row(policy.id, policy.summary)
    console.print(tasks)
    console.print(policies)
    return 0


def _nothing() -> None:
    """No options."""
