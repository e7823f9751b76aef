"""Tiny imitation models with random weights, and demonstrations of a few steps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from residual_rl.base_policies.il import ILCfg
from residual_rl.demos.episode import Demo
from residual_rl.demos.writer import DemoWriter, describe
from residual_rl.factory import make_vec_env
from residual_rl.imitation.model import MODEL_FILE, ImitationModel, ModelSettings
from residual_rl.imitation.normalization import Statistics
from residual_rl.registry import TASKS

TINY_UNET: dict[str, Any] = {"channels": [8, 16], "kernel_size": 3, "time_dim": 8}
NETWORKS: dict[str, dict[str, Any]] = {
    "bc": {"hidden_sizes": [16, 16]},
    "flow": TINY_UNET,
    "diffusion": {**TINY_UNET, "diffusion_steps": 20},
}


def settings(algo: str = "flow", **values: Any) -> ModelSettings:
    """Settings of a tiny model for `so101-paper`."""
    defaults: dict[str, Any] = {
        "algo": algo,
        "network": NETWORKS[algo],
        "obs_keys": ("state",),
        "obs_shapes": {"state": (25,)},
        "action_dim": 6,
        "num_obs_steps": 2,
        "chunk_size": 8,
        "num_action_steps": 4,
        "sampling_steps": 2,
        "task_id": "so101-paper",
        "task_settings": {"control_mode": "joint_delta"},
        "action_unit": (0.02,) * 6,
        "action_unit_name": "rad",
    }
    return ModelSettings(**{**defaults, **values})


def statistics(obs_dim: int = 25, action_dim: int = 6) -> Statistics:
    return Statistics(
        torch.zeros(obs_dim),
        torch.full((obs_dim,), 0.3),
        torch.full((action_dim,), -0.8),
        torch.full((action_dim,), 0.9),
    )


def model(algo: str = "flow", **values: Any) -> ImitationModel:
    """A tiny model with fixed random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = settings(algo, **values)
        return ImitationModel(made, statistics(made.obs_dim // made.num_obs_steps, made.action_dim), step=7)


def make_case(folder: Path) -> ILCfg:
    """A `flow` model in `folder`, and the settings of the base policy that runs it."""
    model().save(folder / MODEL_FILE)
    return ILCfg(checkpoint=str(folder))


def task_settings(task_id: str, **values: Any) -> dict[str, Any]:
    """A task's settings in the form that demonstrations store."""
    cfg = dataclasses.replace(TASKS.get(task_id).default_config(), **values)
    return dict(json.loads(json.dumps(dataclasses.asdict(cfg))))


def write_demos(
    path: Path, episodes: int = 4, steps: int = 6, task_id: str = "so101-paper", **values: Any
) -> Path:
    """Episodes of a controller that moves to a fixed posture, with observations of the env."""
    env = make_vec_env(task_id, episodes, num_threads=1, **values)
    obs, _ = env.reset(seed=list(range(40_000_000, 40_000_000 + episodes)))
    seen: list[Tensor] = [obs["state"]]
    actions: list[Tensor] = []
    for _ in range(steps):
        actions.append((2.0 * torch.sin(3.0 * seen[-1][:, : len(env.action_unit)])).clamp(-1.0, 1.0))
        obs, *_ = env.step(actions[-1])
        seen.append(obs["state"])
    states, taken = torch.stack(seen, 1).numpy(), torch.stack(actions, 1).numpy()
    info = describe(
        task_id,
        task_settings(task_id, **values),
        max_episode_steps=env.max_episode_steps,
        control_hz=env.control_hz,
        source_type="controller",
        source_desc="a test",
    )
    ends = np.arange(steps) == steps - 1
    with DemoWriter(path, info) as writer:
        for i in range(episodes):
            writer.add(
                Demo(
                    actions=taken[i],
                    obs={"state": states[i]},
                    terminated=np.zeros(steps, bool),
                    truncated=ends,
                    seed=i,
                )
            )
    env.close()
    return path
