"""Residuals over whole chunks, for comparison with one for every step: the learner decides once for all the steps of a chunk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.composition import compose, reach, residual_penalty
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import Obs, Transition


class ChunkEnv(ResidualEnv):
    """The decision process of residuals [B, n·A] over the n steps of the base policy's chunks, as in Policy Decorator (Yuan et al. 2025).

    The learner observes the chunk flattened, `base_action` [B, n·A], and the worlds as they are when it begins. The rewards of its steps
    are summed, and discounts are per decision. A world whose episode ends within a chunk stands still until the others are through: for
    the learner that is one transition, with actions of 0 after the end. Arguments and methods are those of `ResidualEnv`.
    """

    @property
    def steps_per_action(self) -> int:
        return self.base_policy.policy.num_action_steps

    @property
    def observation_space(self) -> spaces.Dict:
        chunk = spaces.Box(-1.0, 1.0, (self.action_dim,), np.float32)
        return spaces.Dict({**super().observation_space.spaces, "base_action": chunk})

    @property
    def action_dim(self) -> int:
        return self.steps_per_action * super().action_dim

    def step(self, residual_action: Tensor) -> tuple[Transition, dict[str, Any]]:
        obs, ended = self.obs, torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        reward = torch.zeros(self.num_envs, device=self.device)
        action = torch.zeros(self.num_envs, self.action_dim, device=self.device)
        terminated = truncated = ended
        told: dict[str, Any] = {}
        for step, (transition, info) in enumerate(self.steps(residual_action)):
            told = _joined(told, info, ~ended)
            ended = ended | info["_final_info"]
            terminated, truncated = terminated | transition.terminated, truncated | transition.truncated
            reward = reward + transition.reward
            action.unflatten(1, (self.steps_per_action, -1))[:, step] = transition.action.nan_to_num(0.0)
        whole = Transition(
            obs=obs,
            residual_action=residual_action.detach().to(self.device),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            next_obs=_where(ended, told["final_obs"], self.obs),
            base_action=obs["base_action"],
            action=action,
            residual_scale=self._whole_scale(),
            next_residual_scale=self._whole_scale(),
        )
        return whole, {**told, "_final_info": ended, "_final_obs": ended}

    def steps(self, residual_action: Tensor) -> Iterator[tuple[Transition, dict[str, Any]]]:
        """Execute `residual_action` [B, n·A] step by step, and fewer where all episodes end. In worlds that stand still the action is NaN
        and the residual 0. What follows a step has a `base_action`, a whole chunk, only where an episode ended."""
        running, obs = self.env.active, self.obs
        residuals = residual_action.detach().to(self.device).unflatten(1, (self.steps_per_action, -1))
        for step in range(self.steps_per_action):
            if not running.any():
                break
            start = time.perf_counter()
            base_action = self.base_policy.act(obs, running) if step else self.base_policy.chunk[:, 0]
            residual = residuals[:, step] * running[:, None]
            scale, uncertainty = self.scale(), self.base_policy.uncertainty
            if isinstance(scale, Tensor):
                scale = scale * running[:, None]
            action = compose(base_action, residual, reach(scale, self.env.residual_size))
            middle = time.perf_counter()
            next_obs, reward, terminated, truncated, info = self.env.step(action, running)
            end = time.perf_counter()
            penalty = residual_penalty(residual, scale, self.penalty)
            self._tell(info, penalty, scale, uncertainty)
            ended, final_chunk = info["_final_obs"], torch.zeros_like(self.obs["base_action"])
            if ended.any():
                self.base_policy.drop_chunks(ended)  # the value of the last observation is that of a new plan
                final_chunk = self._base_action(info["final_obs"], ended)
                self.base_policy.reset(ended)
            self.clock.simulation += end - middle
            self.clock.base_policy += time.perf_counter() - end + middle - start
            info["final_obs"] = {**info["final_obs"], "base_action": final_chunk}
            executed = torch.where(running[:, None], action, torch.nan)
            seen = {**obs, "base_action": base_action}
            yield Transition(seen, residual, reward + penalty, terminated, truncated, info["final_obs"], base_action, executed), info
            running, obs = running & ~ended, next_obs
        self.obs = {**obs, "base_action": self._base_action(obs, self.env.active)}

    def _whole_scale(self) -> float | Tensor | None:
        """What all steps of a chunk are scaled by, a number or [n·A]; None where each step has a scale of its own."""
        if self.scale_rule is not None:
            return None
        scale = reach(self.residual_scale, self.env.residual_size)
        return scale.repeat(self.steps_per_action) if isinstance(scale, Tensor) else scale

    def _base_action(self, obs: Obs, mask: Tensor) -> Tensor:
        self.base_policy.act(obs, mask)
        return self.base_policy.chunk.flatten(1)


def _where(mask: Tensor, new: Obs, old: Obs) -> Obs:
    """`new` [B, …] in the worlds of `mask` [B], else `old`."""
    return {name: torch.where(mask.reshape(-1, *[1] * (value.dim() - 1)), value, old[name]) for name, value in new.items()}


def _joined(told: dict[str, Any], info: dict[str, Any], running: Tensor) -> dict[str, Any]:
    """What is told of the steps so far, and of the next one, which the worlds of `running` [B] took: sums of rewards, else the latest."""
    if not told:
        return dict(info)
    latest = {name: _where(running, info[name], told[name]) for name in ("final_obs", "final_info", "task_metrics")}
    sums = {name: value + told["reward_terms"][name] for name, value in info["reward_terms"].items()}
    return {**info, **latest, "reward_terms": sums}
