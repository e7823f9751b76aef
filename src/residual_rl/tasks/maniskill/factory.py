"""The vec_env of the task `maniskill`."""

from __future__ import annotations

import os

import torch

from residual_rl.envs.maniskill.factory import require_maniskill
from residual_rl.envs.maniskill.parallel_envs import ParallelEnvs
from residual_rl.envs.maniskill.sim_env import ManiSkillEnv
from residual_rl.envs.maniskill.spec import ManiSkillEnvCfg
from residual_rl.envs.maniskill.state_renderer import StateRenderer
from residual_rl.envs.maniskill.vec_env import ManiSkillVecEnv, SimEnvs
from residual_rl.errors import ConfigError
from residual_rl.tasks.maniskill.config import ManiSkillCfg

MODULES: tuple[str, ...] = (
    "residual_rl.tasks.maniskill.a1_galaxea",
    "residual_rl.tasks.maniskill.pick_box.env",
)
"""Modules of this package that register tasks and robots with ManiSkill."""


def make(cfg: ManiSkillCfg, num_envs: int, num_threads: int, device: str) -> ManiSkillVecEnv:
    """Create `num_envs` envs, on a GPU or in `num_threads` worker processes (0: one per CPU core)."""
    if num_envs < 1:
        raise ConfigError(f"num_envs must be at least 1, not {num_envs}")
    require_maniskill()
    env_cfg = make_env_cfg(cfg, device)
    sim: SimEnvs
    if env_cfg.sim_backend == "physx_cpu":
        num_workers = cfg.num_workers or num_threads or len(os.sched_getaffinity(0))
        sim = ParallelEnvs(env_cfg, num_envs, num_workers)
    else:
        sim = ManiSkillEnv(env_cfg, num_envs)
    return make_vec_env(sim, cfg, env_cfg)


def make_env_cfg(cfg: ManiSkillCfg, device: str = "cpu") -> ManiSkillEnvCfg:
    """The settings of the ManiSkill env with tensors on `device`.

    Raises `ConfigError` if the device is not available or the settings do not fit it.
    """
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"sim_device must be cpu, cuda or cuda:N, not {device!r}") from error
    # choose the simulation: on the GPU if the tensors are there
    gpu, index = torch.cuda.is_available(), wanted.index
    simulation: str = cfg.sim_backend
    if simulation == "auto":
        simulation = "physx_cuda" if wanted.type == "cuda" else "physx_cpu"
    if simulation == "physx_cuda":
        if not gpu:
            raise ConfigError(
                "ManiSkill's GPU simulation needs an NVIDIA GPU, and torch finds none; choose --sim-backend"
                " physx_cpu"
            )
        if cfg.reconfiguration_freq and not cfg.ignore_terminations:
            raise ConfigError(
                "the GPU simulation cannot rebuild the scene of individual envs: --reconfiguration-freq"
                " needs --ignore-terminations"
            )
        simulation += "" if index is None else f":{index}"
    # choose the renderer: none if no images are observed
    render_backend = cfg.render_backend
    if render_backend == "auto":
        render_backend = "none" if cfg.obs_mode == "state" else "gpu" if gpu else "cpu"
    return ManiSkillEnvCfg(
        env_id=cfg.env_id,
        robot_uids=cfg.robot_uids,
        control_mode=cfg.control_mode,
        obs_mode=cfg.obs_mode,
        reward_mode=cfg.reward_mode,
        sim_backend=simulation,
        render_backend=render_backend,
        reconfiguration_freq=cfg.reconfiguration_freq,
        image_size=cfg.image_size,
        modules=(*MODULES, *cfg.task_modules),
    )


def make_vec_env(sim: SimEnvs, cfg: ManiSkillCfg, env_cfg: ManiSkillEnvCfg) -> ManiSkillVecEnv:
    """The vec_env of the simulated envs `sim`, which were created from `env_cfg`."""
    max_episode_steps = cfg.max_episode_steps or sim.description.max_episode_steps
    if max_episode_steps is None:
        sim.close()
        raise ConfigError(f"{cfg.env_id} has no episode limit; set one with --max-episode-steps")
    device = "gpu" if torch.cuda.is_available() else "cpu"
    renderer = StateRenderer(env_cfg, env_cfg.render_backend if env_cfg.has_images else device)
    return ManiSkillVecEnv(sim, max_episode_steps, cfg.ignore_terminations, renderer)
