"""Files of demonstrations that ManiSkill itself wrote: `trajectory.h5` with `trajectory.json` beside it."""

from __future__ import annotations

from typing import Any

from residual_rl.errors import ConfigError

CONVERT = (
    "python -m mani_skill.trajectory.replay_trajectory --traj-path FILE --save-traj --obs-mode state"
    " --target-control-mode"
)


def settings(info: dict[str, Any]) -> dict[str, Any]:
    """The settings of the task `maniskill` for a file that ManiSkill describes by `info`.

    The limit of episodes is that of the file, or its longest episode where that is longer. Raises
    `ConfigError` for control modes whose actions are not in [-1, 1].
    """
    made, episodes = info["env_info"].get("env_kwargs") or {}, info["episodes"]
    mode = str(made.get("control_mode") or episodes[0].get("control_mode"))
    if "delta" not in mode and mode != "pd_joint_vel":
        raise ConfigError(
            f"ManiSkill stores the actions of control mode {mode} as they are, and not in [-1, 1]; "
            f"convert the file: {CONVERT} pd_joint_delta_pos"
        )
    found = {
        "env_id": info["env_info"]["env_id"],
        "control_mode": mode,
        "max_episode_steps": max(
            info["env_info"].get("max_episode_steps") or 1,
            *(int(e.get("elapsed_steps", 1)) for e in episodes),
        ),
    }
    for name in ("robot_uids", "reward_mode"):
        if isinstance(made.get(name), str):
            found[name] = made[name]
    return found
