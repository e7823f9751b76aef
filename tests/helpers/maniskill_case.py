"""ManiSkill's own envs, for comparison."""

from __future__ import annotations

from typing import Any

import gymnasium


def bare(env_id: str, **settings: Any) -> Any:
    """ManiSkill's own env, without wrappers of this project."""
    import mani_skill.envs  # noqa: F401

    from residual_rl.envs.maniskill import headless as no_device

    if not no_device.vulkan_works():
        no_device.replace_materials()
    arguments = {
        "num_envs": 1,
        "obs_mode": "state",
        "sim_backend": "physx_cpu",
        "render_backend": "none",
        **settings,
    }
    return gymnasium.make(env_id, **arguments)
