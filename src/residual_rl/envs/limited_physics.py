"""The limits of a real arm in simulation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residual_rl.config import SafetyLimitsCfg
from residual_rl.envs.task import Physics, Quantities
from residual_rl.envs.task_env import TaskEnv
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.robots.safety_limits import SafetyLimits
from residual_rl.types import State

_OWN = ("target", "target_step")


class LimitedPhysics:
    """`physics` whose joint targets are limited before each step; everything else is passed on to it."""

    def __init__(self, physics: Physics, limits: SafetyLimits):
        self._physics = physics
        self._limits = limits
        self._last: Quantities = {}
        """`target` [B, J]: the last targets; `target_step` [B, J]: their last change."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._physics, name)

    def reset(self, env_ids: Tensor, episode: Quantities) -> None:
        self._physics.reset(env_ids, episode)
        start = self._physics.read()["joint_position"]
        fresh = {"target": start, "target_step": torch.zeros_like(start)}
        last = self._last or fresh
        self._last = {name: last[name].index_copy(0, env_ids, fresh[name][env_ids]) for name in _OWN}

    def step(self, joint_target: Tensor, env_ids: Tensor | None = None) -> Tensor | None:
        last = self._last["target"]
        limited = self._limits(joint_target, last, self._last["target_step"]).target
        if env_ids is not None:  # the other envs stay where they are
            limited = joint_target.index_copy(0, env_ids, limited[env_ids])
        sent = self._physics.step(limited, env_ids)
        now = limited if sent is None else sent
        ids = torch.arange(len(now), device=now.device) if env_ids is None else env_ids
        self._last = {
            "target": last.index_copy(0, ids, now[ids]),
            "target_step": self._last["target_step"].index_copy(0, ids, (now - last)[ids]),
        }
        return now

    def state_dict(self) -> State:
        return {**self._physics.state_dict(), **self._prefixed()}

    def load_state_dict(self, state: State) -> None:
        self._physics.load_state_dict(state)
        self._last = {name: state[f"limits/{name}"] for name in _OWN}

    def env_states(self) -> Quantities:
        return {**self._physics.env_states(), **self._prefixed()}

    def set_env_states(self, env_ids: Tensor, states: Quantities) -> None:
        self._physics.set_env_states(env_ids, states)
        self._last = {
            name: self._last[name].index_copy(0, env_ids, states[f"limits/{name}"]) for name in _OWN
        }

    def _prefixed(self) -> Quantities:
        return {f"limits/{name}": value.clone() for name, value in self._last.items()}


def limit_targets(env: VecEnv, cfg: SafetyLimitsCfg) -> None:
    """Apply limits to the joint targets that `env` commands.

    Raises:
        ConfigError: the env's actions are not joint targets of an arm in its own simulator.
    """
    if not isinstance(env, TaskEnv) or env.hardware is None:
        raise ConfigError(
            "safety needs a task of an arm with joint targets, such as so101-paper: leave out --safety"
        )
    limits = SafetyLimits(cfg, env.hardware, env.control_hz, env.kinematics)
    env.physics = LimitedPhysics(env.physics, limits)
