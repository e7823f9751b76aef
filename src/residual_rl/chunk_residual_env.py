"""Residuals over whole chunks: the learner decides once for all the steps of a chunk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.residual_env import ResidualEnv
from residual_rl.types import Obs, Transition


class ChunkResidualEnv(ResidualEnv):
    """The decision process of residuals [B, n·A] over the n executed steps of the base policy's chunks.

    Source: Policy Decorator (Yuan et al., 2025, arXiv 2412.13630). The learner observes the flattened chunk
    as `base_action` [B, n·A], and the state of the env at the start of the chunk. Rewards are summed over the
    chunk, and the discount is applied once per chunk. An env whose episode ends within a chunk waits until
    the other envs have finished theirs. For the learner this is one transition, with zero actions after the
    end of the episode.

    Arguments and methods are those of `ResidualEnv`.
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
        obs = self.obs
        ended = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        terminated = truncated = success = ended
        reward = torch.zeros(self.num_envs, device=self.device)
        action = self._planned(residual_action.detach().to(self.device))
        merged: dict[str, Any] = {}

        # Merge the steps of the chunk into one transition.
        for step, (transition, info) in enumerate(self.steps(residual_action)):
            merged = _merge_infos(merged, info, ~ended)
            ended = ended | info["_final_info"]
            terminated = terminated | transition.terminated
            truncated = truncated | transition.truncated
            success = success | (info["_final_info"] & info["final_info"]["success_once"].bool())
            reward = reward + transition.reward
            executed = transition.action
            action[:, step] = torch.where(executed.isnan(), action[:, step], executed)

        chunk_scale = self._chunk_scale()
        whole = Transition(
            obs=obs,
            residual_action=residual_action.detach().to(self.device),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            next_obs=_where(ended, merged["final_obs"], self.obs),
            base_action=obs["base_action"],
            action=action.flatten(1),
            effective_scale=chunk_scale,
            next_effective_scale=chunk_scale,
            success=success,
        )
        return whole, {**merged, "_final_info": ended, "_final_obs": ended}

    @property
    def can_restore(self) -> bool:
        return False  # a state within a chunk has no base action of its own

    def steps(self, residual_action: Tensor) -> Iterator[tuple[Transition, dict[str, Any]]]:
        """Execute `residual_action` [B, n·A] step by step, until all episodes have ended.

        For waiting envs, the yielded action is NaN and the residual is 0. The observation after a step
        includes a valid `base_action`, a whole chunk, only where an episode ended.
        """
        running = self.vec_env.active
        obs = self.obs
        residuals = residual_action.detach().to(self.device).unflatten(1, (self.steps_per_action, -1))
        for step in range(self.steps_per_action):
            if not running.any():
                break
            # The first base action of the chunk is known; the executor returns the others one by one.
            start = time.perf_counter()
            base_action = self.base_policy.act(obs, running) if step else self.base_policy.chunk[:, 0]
            self.timer.base_policy += time.perf_counter() - start
            residual = residuals[:, step] * running[:, None]
            outcome = self._execute(base_action, residual, running)

            # Where an episode ended, the final observation gets a new chunk before the base policy is reset.
            start = time.perf_counter()
            info = outcome.info
            ended = info["_final_obs"]
            final_chunk = torch.zeros_like(self.obs["base_action"])
            final_elapsed = torch.zeros_like(self.obs["elapsed_steps"])
            if ended.any():
                self.base_policy.drop_chunks(ended)
                final_chunk = self._base_action(info["final_obs"], ended)
                final_elapsed = self.base_policy.elapsed_steps
                self.base_policy.reset(ended)
            self.timer.base_policy += time.perf_counter() - start
            final = {"base_action": final_chunk, "elapsed_steps": final_elapsed}
            info["final_obs"] = {**info["final_obs"], **final}

            transition = Transition(
                obs={**obs, "base_action": base_action},
                residual_action=residual,
                reward=outcome.reward,
                terminated=outcome.terminated,
                truncated=outcome.truncated,
                next_obs=info["final_obs"],
                base_action=base_action,
                action=torch.where(running[:, None], outcome.action, torch.nan),
            )
            yield transition, info
            running = running & ~ended
            obs = outcome.next_obs
        self.obs = {**obs, **self._base_obs(obs, self.vec_env.active)}

    def _planned(self, residual_action: Tensor) -> Tensor:
        """The actions [B, n, A] of whole chunks, for `residual_action` [B, n·A]."""
        base, uncertainty = self.base_policy.chunk, self.base_policy.chunk_uncertainty
        residuals = residual_action.unflatten(1, (self.steps_per_action, -1))
        steps = range(self.steps_per_action)
        apply = self.composition.apply
        return torch.stack([apply(base[:, k], residuals[:, k], uncertainty[:, k]) for k in steps], 1)

    def _chunk_scale(self) -> float | Tensor | None:
        """The effective scale of a whole chunk, a number or [n·A]; None if it differs between steps."""
        if self.composition.adaptive:
            return None
        scale = self.composition.in_actions(self.residual_scale)
        return scale.repeat(self.steps_per_action) if isinstance(scale, Tensor) else scale

    def _base_action(self, obs: Obs, mask: Tensor) -> Tensor:
        self.base_policy.act(obs, mask)
        return self.base_policy.chunk.flatten(1)


def _where(mask: Tensor, new: Obs, old: Obs) -> Obs:
    """`new` [B, …] in the envs of `mask` [B], else `old`."""
    return {
        name: torch.where(mask.reshape(-1, *[1] * (value.dim() - 1)), value, old[name])
        for name, value in new.items()
    }


def _merge_infos(merged: dict[str, Any], info: dict[str, Any], running: Tensor) -> dict[str, Any]:
    """Add the info of a step, in which the envs of `running` [B] took part, to those of the same chunk.

    Reward terms are summed; everything else is replaced by the latest value.
    """
    if not merged:
        return dict(info)
    latest = {
        name: _where(running, info[name], merged[name])
        for name in ("final_obs", "final_info", "task_metrics")
    }
    sums = {name: value + merged["reward_terms"][name] for name, value in info["reward_terms"].items()}
    return {**info, **latest, "reward_terms": sums}
