"""The Adroit hand of gymnasium-robotics: door, hammer, pen and relocate."""

from __future__ import annotations

from residual_rl.registry import register_task
from residual_rl.tasks.gymnasium.env_package import EnvPackage
from residual_rl.tasks.gymnasium.spec import env_task

PACKAGE = EnvPackage(
    name="gymnasium-robotics",
    module="gymnasium_robotics",
    setup="gymnasium-robotics",
    install="gymnasium-robotics",
    env_modules=("gymnasium_robotics",),
)
make = PACKAGE.make

register_task(
    env_task(
        id="adroit",
        summary="the Adroit hand of gymnasium-robotics: door, hammer, pen, relocate (--env-id)",
        make=f"{__name__}:make",
        config_overrides={"env_id": "AdroitHandDoor-v1", "max_episode_steps": 200},
        base_policy="zero",
    )
)
