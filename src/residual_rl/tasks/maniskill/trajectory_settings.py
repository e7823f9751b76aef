"""Task settings for demonstration files written by ManiSkill: `trajectory.h5` beside `trajectory.json`."""

from __future__ import annotations

from typing import Any

from residual_rl.errors import ConfigError

CONVERT = (
    "python -m mani_skill.trajectory.replay_trajectory --traj-path FILE --save-traj --obs-mode state"
    " --target-control-mode"
)


def settings(info: dict[str, Any]) -> dict[str, Any]:
    """The settings of the task `maniskill` for a file.

    `max_episode_steps` is the limit in the file, or the length of its longest episode if that is longer.

    Args:
        info: the content of `trajectory.json`.

    Raises:
        ConfigError: the actions of the file's control mode are not in [-1, 1].
    """
    env_kwargs, episodes = info["env_info"].get("env_kwargs") or {}, info["episodes"]
    mode = str(env_kwargs.get("control_mode") or episodes[0].get("control_mode"))
    if "delta" not in mode and mode != "pd_joint_vel":
        raise ConfigError(
            f"ManiSkill does not normalise the actions of control mode {mode} to [-1, 1]; "
            f"convert the file with: {CONVERT} pd_joint_delta_pos"
        )
    found = {
        "env_id": info["env_info"]["env_id"],
        "control_mode": mode,
        "max_episode_steps": max(
            info["env_info"].get("max_episode_steps") or 1,
            *(int(e.get("elapsed_steps") or 1) for e in episodes),
        ),
    }
    for name in ("robot_uids", "reward_mode"):
        if isinstance(env_kwargs.get(name), str):
            found[name] = env_kwargs[name]
    return found
