"""The vec_env of the task `gymnasium`."""

from __future__ import annotations

from residual_rl.envs.gymnasium.vec_env import GymVecEnv
from residual_rl.errors import ConfigError
from residual_rl.tasks.gymnasium.config import GymnasiumCfg
from residual_rl.utils.threads import simulator_threads


def make(cfg: GymnasiumCfg, num_envs: int, num_threads: int, device: str) -> GymVecEnv:
    """Create `num_envs` envs in `cfg.num_workers` processes, or else `num_threads` (0: see
    `simulator_threads`)."""
    if device != "cpu":
        raise ConfigError(f"Gymnasium envs run on the CPU: sim_device must be cpu, not {device!r}")
    return GymVecEnv(cfg, num_envs, cfg.num_workers or num_threads or simulator_threads())
