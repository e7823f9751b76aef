"""ManiSkill's own env beside ours."""

from __future__ import annotations

from typing import Any

import gymnasium


def bare(env_id: str, **settings: Any) -> Any:
    """ManiSkill's own env, without anything of ours."""
    import mani_skill.envs  # noqa: F401

    from residual_rl.envs.maniskill import headless

    if not headless.vulkan_works():
        headless.replace_materials()
    arguments = {
        "num_envs": 1,
        "obs_mode": "state",
        "sim_backend": "physx_cpu",
        "render_backend": "none",
        **settings,
    }
    return gymnasium.make(env_id, **arguments)
