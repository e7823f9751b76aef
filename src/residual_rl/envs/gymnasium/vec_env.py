"""Gymnasium envs as a `VecEnv`: termination, truncation, resets, seeds and resuming."""

from __future__ import annotations

from residual_rl.envs.gymnasium.config import GymnasiumEnvCfg
from residual_rl.envs.vec_env import VecEnv


class GymVecEnv(VecEnv):
    """B envs of somebody's Gymnasium env.

    Observations: `state` [O] float32 is all numbers of the observation side by side; each entry of a nested
    observation is there under its keys, joined by underscores (`observation`, `agent_pos`); images are uint8
    [H, W, C]. An env whose adapter has an `expert` also has `expert_action` [A]. The env's own metrics have
    the prefix `env_`.

    Args:
        cfg: the env's settings.
        num_envs: B.
        num_workers: number of processes; at most B are started.

    Raises:
        ConfigError: the env cannot be created or used.
        WorkerError: a worker failed; the pool is then closed. Other methods raise it as well.
    """

    def __init__(self, cfg: GymnasiumEnvCfg, num_envs: int, num_workers: int = 1):
        raise NotImplementedError
