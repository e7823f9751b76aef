"""Anybody's Gymnasium envs, and tasks for the envs of well-known packages."""

from residual_rl.registry import register_task
from residual_rl.tasks.gymnasium.spec import env_task

SPEC = register_task(
    env_task(
        id="gymnasium",
        summary="any Gymnasium env (--env-id, --env-modules), also in another Python environment (--python)",
        make=f"{__name__}.factory:make",
        base_policy="zero",
    )
)

from residual_rl.tasks.gymnasium import adroit, fetch, metaworld, pusht  # noqa: E402, F401
