"""Fetch, the robot arm of gymnasium-robotics, with scripted experts."""

from __future__ import annotations

from residual_rl.registry import register_task
from residual_rl.tasks.gymnasium.env_package import EnvPackage
from residual_rl.tasks.gymnasium.spec import env_task

PACKAGE = EnvPackage(
    name="gymnasium-robotics",
    module="gymnasium_robotics",
    setup="gymnasium-robotics",
    install="gymnasium-robotics",
    adapter="fetch.py:FetchAdapter",
    env_modules=("gymnasium_robotics",),
)
make = PACKAGE.make

register_task(
    env_task(
        id="fetch",
        summary="Fetch of gymnasium-robotics: reach, push, pick and place, slide (--env-id FetchPush-v4)",
        make=f"{__name__}:make",
        config_overrides={"env_id": "FetchPush-v4", "max_episode_steps": 50},
        base_policy="expert",
    )
)
