"""The envs that one worker process of `ParallelEnvs` steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.envs.maniskill.cpu_patches import collect_garbage_seldom, read_poses_at_once
from residual_rl.envs.maniskill.sim_env import ManiSkillEnv
from residual_rl.envs.maniskill.spec import ManiSkillEnvCfg


def make(cfg: dict[str, Any], num_envs: int) -> EnvWorker:
    """Create the envs of a worker process. It must have no other purpose, since `cpu_patches` are global."""
    torch.set_num_threads(1)
    read_poses_at_once()
    return EnvWorker(ManiSkillEnvCfg.from_json(cfg), num_envs)


class EnvWorker:
    """`num_envs` ManiSkill envs of the CPU simulation, with the methods that a `WorkerPool` calls.

    Inputs and results are rows of shared arrays. They are written with NumPy, which is five times as fast as
    torch for a few numbers.
    """

    @torch.inference_mode()
    def __init__(self, cfg: ManiSkillEnvCfg, num_envs: int):
        if not cfg.has_images:  # images take too much memory to postpone garbage collection
            collect_garbage_seldom()
        self._envs = [ManiSkillEnv(cfg) for _ in range(num_envs)]
        self._rows: list[dict[str, NDArray[Any]]] = []
        """The shared arrays of each env, [1, …] each."""
        self._env_ids = torch.zeros(1, dtype=torch.int64)

    def describe(self) -> dict[str, Any]:
        """The `EnvDescription` of the envs, as JSON."""
        return self._envs[0].description.to_json()

    @torch.inference_mode()
    def share(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Store the shared arrays, and write the first observations."""
        self._rows = [
            # slices, not indices: each env sees arrays with a batch of 1
            {name: array[i : i + 1] for name, array in arrays.items()}
            for i in range(len(self._envs))
        ]
        for row, env in zip(self._rows, self._envs, strict=True):
            _write(row, env.observations(), "obs/")

    @torch.inference_mode()
    def reset(self) -> None:
        """Start new episodes in the active envs."""
        for row, env in zip(self._rows, self._envs, strict=True):
            if row["active"]:
                np.random.seed(int(row["seed"][0]))  # noqa: NPY002 (some tasks draw from the global generator)
                env.reset(self._env_ids, torch.from_numpy(row["seed"]))
                _write(row, env.observations(), "obs/")

    @torch.inference_mode()
    def step(self) -> None:
        """Step the active envs."""
        for row, env in zip(self._rows, self._envs, strict=True):
            if row["active"]:
                # a copy: the env may keep its action, and the pool overwrites the shared array
                step = env.step(torch.from_numpy(row["action"].copy()))
                _write(row, {"reward": step.reward, "success": step.success, "fail": step.fail})
                _write(row, step.metrics, "metrics/")
                _write(row, step.obs, "obs/")

    @torch.inference_mode()
    def set_states(self) -> None:
        """Set the states of the active envs."""
        for row, env in zip(self._rows, self._envs, strict=True):
            if row["active"]:
                env.set_states(self._env_ids, torch.from_numpy(row["state"][:, 1:].copy()))
                _write(row, env.observations(), "obs/")

    @torch.inference_mode()
    def states(self) -> None:
        """Write the simulator's states."""
        for row, env in zip(self._rows, self._envs, strict=True):
            _write(row, {"state": env.states()})


def _write(row: dict[str, NDArray[Any]], values: dict[str, Tensor], prefix: str = "") -> None:
    """Write `values` ([1, …] each) to the arrays of an env, with `prefix` before their names."""
    for name, value in values.items():
        row[prefix + name][...] = value.numpy()
