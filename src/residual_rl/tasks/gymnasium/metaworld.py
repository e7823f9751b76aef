"""The 50 tasks of MetaWorld, with its scripted experts."""

from __future__ import annotations

from residual_rl.registry import register_task
from residual_rl.tasks.gymnasium.env_package import EnvPackage
from residual_rl.tasks.gymnasium.spec import env_task

PACKAGE = EnvPackage(
    name="MetaWorld",
    module="metaworld",
    setup="metaworld",
    install="metaworld mujoco==3.3.0 packaging",
    adapter="metaworld.py:MetaWorldAdapter",
)
make = PACKAGE.make

register_task(
    env_task(
        id="metaworld",
        summary="the 50 tasks of MetaWorld (--env-id peg-insert-side-v3), with their scripted experts",
        make=f"{__name__}:make",
        config_overrides={"env_id": "reach-v3", "max_episode_steps": 500},
        base_policy="expert",
    )
)
