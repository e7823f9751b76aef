"""Exported policies with random weights, and what the run that they stand for would do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tiny_runs
import torch
from torch import Tensor

from residual_rl.exported_policy import ExportedPolicy, load_policy, save_policy
from residual_rl.factory import make_learner, make_residual_env
from residual_rl.residual_env import ResidualEnv

SCALE = 0.4


def make_policy(folder: Path, base_policy: str = "jacobian", learner: str = "ppo", **settings: Any) -> Path:
    """An exported policy in `folder`, whose residual is not zero, and whose episodes are not over soon."""
    cfg = tiny_runs.config(base_policy, learner, **{"tolerance": 0.01, **settings})
    env = make_residual_env(cfg, 2)
    made = make_learner(cfg, env)
    cfg = dataclasses.replace(cfg, learner=made.cfg)  # type: ignore[attr-defined]
    with torch.random.fork_rng():
        torch.manual_seed(8)
        weights = {name: _changed(name, value) for name, value in made.policy_state_dict().items()}
    env.close()
    folder.mkdir(parents=True)
    save_policy(folder / "policy.safetensors", ExportedPolicy(cfg, SCALE, 64, weights))
    return folder


def _changed(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {inner_name: _changed(inner_name, inner) for inner_name, inner in value.items()}
    if name == "gate.high":  # a gate that is open by a part
        return torch.tensor(0.9)
    if isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 2:
        return value + 0.2 * torch.randn_like(value)
    return value


class Run:
    """The run's own env, stepped with its own residual: B episodes from `seeds` on."""

    def __init__(self, model: Path, seeds: list[int]):
        exported = load_policy(model / "policy.safetensors")
        self.env: ResidualEnv = make_residual_env(exported.cfg, len(seeds))
        self.env.residual_scale = exported.residual_scale
        self._actor = exported.actor(self.env.observation_space, self.env.action_dim, self.env.device)
        self.env.reset(seeds)

    @property
    def joints(self) -> Tensor:
        """[B, 6] in degrees, gripper 0 to 100, float32 as LeRobot's envs give them."""
        return self.env.vec_env.hardware.to_hardware(self.env.obs["joint_position"]).float()

    @property
    def environment(self) -> Tensor:
        """[B, 31]: LeRobot's `observation.environment_state`."""
        names = self.env.vec_env.task.environment_state  # type: ignore[attr-defined]
        return torch.cat([self.env.obs[name] for name in names], 1)

    def step(self) -> tuple[Tensor, Tensor]:
        """The next action [B, A] of the run, and the joint targets [B, 6] that it commands, in degrees."""
        obs = self.env.obs
        residual = self._actor(obs)
        assert residual.abs().min() > 0.0
        action = self.env.step(residual)[0].action
        targets = self.env.vec_env.actions_to_targets(action[:, None], obs)[:, 0]
        return action, self.env.vec_env.hardware.to_hardware(targets)
