"""Demonstrations from ManiSkill's motion planning solutions, for `demos collect maniskill`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch

from residual_rl.demos.episode import Demo, FailedEpisode
from residual_rl.envs.maniskill.motion_planner import Arrays, require_planner
from residual_rl.envs.maniskill.planner_pool import PlanCfg, PlannerPool
from residual_rl.errors import ConfigError
from residual_rl.tasks.maniskill.config import ManiSkillCfg
from residual_rl.tasks.maniskill.factory import make_env_cfg
from residual_rl.utils.seeding import simulator_seeds


class MotionPlanning:
    """Plans episodes of a ManiSkill task in worker processes; a `residual_rl.demos.episode.Planner`.

    Args:
        cfg: the task.
        num_workers: number of processes.
        time_limit: time after which an episode is abandoned [s].
    """

    description = "ManiSkill's motion planning solution, converted to the control mode by replaying it"

    def __init__(self, cfg: ManiSkillCfg, num_workers: int, time_limit: float):
        require_planner()
        env_cfg = make_env_cfg(dataclasses.replace(cfg, sim_backend="physx_cpu"))
        plan = PlanCfg(env_cfg, cfg.max_episode_steps, cfg.ignore_terminations, time_limit)
        self._workers = PlannerPool(plan, cfg.num_workers or num_workers)
        description, self.max_episode_steps = self._workers.description, self._workers.max_episode_steps
        self.control_hz, self.action_unit = description.control_hz, list(description.action_unit)
        self.action_unit_name = description.action_unit_name
        self.task = dataclasses.replace(
            cfg, control_mode=description.control_mode, max_episode_steps=self.max_episode_steps
        )

    def episodes(self, seeds: Sequence[int], stopped: Callable[[], bool]) -> Iterator[Demo | FailedEpisode]:
        """See `Planner`."""
        theirs: list[int] = simulator_seeds(torch.as_tensor(seeds)).tolist()
        for i, episode in self._workers.episodes(theirs, stopped):
            yield FailedEpisode(seeds[i], episode) if isinstance(episode, str) else _demo(seeds[i], episode)

    def close(self) -> None:
        """Stop the processes."""
        self._workers.close()


def _demo(seed: int, arrays: Arrays) -> Demo:
    """Convert a planned episode to a demonstration."""
    return Demo(
        obs={name.removeprefix("obs/"): value for name, value in arrays.items() if name.startswith("obs/")},
        seed=seed,
        env_states={"maniskill": arrays["state"]},
        actions=arrays["actions"],
        rewards=arrays["rewards"],
        success=arrays["success"],
        terminated=arrays["terminated"],
        truncated=arrays["truncated"],
    )


def make(cfg: ManiSkillCfg, num_workers: int, time_limit: float) -> MotionPlanning:
    """Construct the planner of a task. Raises `ConfigError` if ManiSkill cannot plan for it."""
    if cfg.sim_backend == "physx_cuda":
        raise ConfigError(
            "motion planning needs ManiSkill's CPU simulation: leave out --sim-backend physx_cuda"
        )
    return MotionPlanning(cfg, num_workers, time_limit)
