"""PushT of gym-pusht: a disc pushes a T-shaped block onto its place."""

from __future__ import annotations

from residual_rl.registry import register_task
from residual_rl.tasks.gymnasium.env_package import EnvPackage
from residual_rl.tasks.gymnasium.spec import env_task

PACKAGE = EnvPackage(
    name="gym-pusht",
    module="gym_pusht",
    setup="pusht",
    install="gym-pusht",
    env_modules=("gym_pusht",),
)
make = PACKAGE.make

register_task(
    env_task(
        id="pusht",
        summary="PushT of gym-pusht: a disc pushes a T-shaped block onto its place, at 10 Hz",
        make=f"{__name__}:make",
        config_overrides={"env_id": "gym_pusht/PushT-v0", "max_episode_steps": 300},
        base_policy="zero",
    )
)
