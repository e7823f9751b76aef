"""The task `so101-paper` for LeRobot's EnvHub: this file alone in a repository, for users of residual_rl.

    from lerobot.envs.factory import make_env

    envs = make_env("USER/so101-paper", n_envs=4, trust_remote_code=True)

It needs `pip install 'residual-rl[mujoco]'`, and not the plugin `lerobot_policy_residual_rl`.
"""

from typing import Any

from residual_rl.lerobot.env import make_envs


def make_env(n_envs: int = 1, use_async_envs: bool = False, cfg: Any = None) -> dict[str, dict[int, Any]]:
    """The envs in LeRobot's form. A `cfg` may give the task's id and the names of cameras."""
    given = {name: getattr(cfg, name, None) for name in ("task", "cameras")}
    return make_envs(n_envs, use_async_envs, **{name: value for name, value in given.items() if value})
