"""A vec_env, a base policy and the composition of actions, put together: the decision process that a learner sees."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.composition import ScaleRule, compose, reach, residual_penalty
from residual_rl.envs.spaces import with_base_action
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.types import Obs, State, Transition


@dataclass
class Clock:
    """Wall time spent [s], by part."""

    simulation: float = 0.0
    base_policy: float = 0.0


class ResidualEnv:
    """Executes `compose(base_action, residual_action, residual_scale)` in `env`; where that says what a residual of 1 is, times that.

    The base policy is asked once per observation: first for the final observations of ending episodes, then, after its reset in
    those worlds, for the new ones. The base action of an observation is the one that is executed, and the one that the transition holds.

    Args:
        env: the worlds.
        base_policy: checked against `env`; not shared with another ResidualEnv.
        residual_scale: the bound of the residual; may be set between steps.
        penalty: weight of `‖residual_scale · residual_action‖²` in the reward.
        scale_rule: makes each world's own scale of `residual_scale` and of how unsure the base policy is; None leaves it at that.
            With a base policy that does not tell how unsure it is, the first `reset` raises `ConfigError`.
    """

    def __init__(
        self,
        env: VecEnv,
        base_policy: BasePolicyExecutor,
        residual_scale: float,
        penalty: float = 0.0,
        scale_rule: ScaleRule | None = None,
    ):
        self.env, self.base_policy = env, base_policy
        self.residual_scale, self.penalty, self.scale_rule = residual_scale, penalty, scale_rule
        self.num_envs, self.device = env.num_envs, env.device
        self.clock = Clock()
        self._penalties = torch.zeros(self.num_envs, device=self.device)
        """[B]: sum of the penalties of each world's episode so far."""
        self.obs: Obs = {}
        """The current observation, `base_action` [B, A] included."""

    @property
    def observation_space(self) -> spaces.Dict:
        """What one world observes, `base_action` included."""
        return with_base_action(self.env)

    @property
    def steps_per_action(self) -> int:
        """Env steps that a residual action is for."""
        return 1

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.env.action_size)

    def reset(self, seed: int | Sequence[int] | None = None) -> Obs:
        """Start a new episode in every world."""
        obs, _ = self.env.reset(seed=seed)
        self.base_policy.reset(torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
        self._penalties = torch.zeros_like(self._penalties)
        self.obs = {**obs, "base_action": self._base_action(obs, self.env.active)}
        if self.scale_rule is not None and not self.base_policy.tells_uncertainty:
            raise ConfigError(
                f"{self.base_policy.name} does not tell how unsure it is, which --adaptive uncertainty goes by; "
                "choose a hybrid in mode ensemble or a policy of several samples, or --adaptive off"
            )
        return self.obs

    def _base_action(self, obs: Obs, mask: Tensor) -> Tensor:
        """What a residual action for `obs` is on top of, valid in the worlds of `mask` [B]."""
        return self.base_policy.act(obs, mask)

    def scale(self) -> float | Tensor:
        """What the residual of the current observation is scaled by: `residual_scale`, or each world's own [B, 1] where it is adaptive."""
        if self.scale_rule is None:
            return self.residual_scale
        return self.scale_rule(self.residual_scale, self.base_policy.uncertainty)

    def _composed_by(self) -> float | Tensor:
        """What the composition scales the residual of the current observation by."""
        return reach(self.scale(), self.env.residual_size)

    def step(self, residual_action: Tensor) -> tuple[Transition, dict[str, Any]]:
        """Execute `residual_action` [B, A] in [-1, 1]. `info` is the env's, with the penalty among the reward's terms and in the
        `episode_return`, and `residual_scale`: what the residual was scaled by, as `scale` gives it. Where that is adaptive, there is
        `base_uncertainty` [B] too."""
        obs, base_action = self.obs, self.obs["base_action"]
        residual_action = residual_action.detach().to(self.device)  # the learner may be on another device
        scale, uncertainty = self.scale(), self.base_policy.uncertainty
        composed_by = self._composed_by()
        action = compose(base_action, residual_action, composed_by)
        start = time.perf_counter()
        next_obs, reward, terminated, truncated, info = self.env.step(action)
        middle = time.perf_counter()

        penalty = residual_penalty(residual_action, scale, self.penalty)
        self._tell(info, penalty, scale, uncertainty)
        ended, final_obs = info["_final_obs"], info["final_obs"]
        active = self.env.active  # a world without an episode has no use for a plan
        if ended.any():
            final_base_action = self.base_policy.act(final_obs, ended)
            final_scale = self._composed_by()
            self.base_policy.reset(ended)
            next_base_action = self.base_policy.act(next_obs, active)
            true_next_base_action = torch.where(ended[:, None], final_base_action, next_base_action)
            next_scale = self._composed_by()
            if isinstance(final_scale, Tensor) and isinstance(next_scale, Tensor) and next_scale.dim() == 2:  # each world's own
                next_scale = torch.where(ended[:, None], final_scale, next_scale)
        else:
            next_base_action = true_next_base_action = self.base_policy.act(next_obs, active)
            next_scale = self._composed_by()
        self.clock.simulation += middle - start
        self.clock.base_policy += time.perf_counter() - middle

        self.obs = {**next_obs, "base_action": next_base_action}
        transition = Transition(
            obs=obs,
            residual_action=residual_action,
            reward=reward + penalty,
            terminated=terminated,
            truncated=truncated,
            next_obs={**final_obs, "base_action": true_next_base_action},
            base_action=base_action,
            action=action,
            residual_scale=composed_by,
            next_residual_scale=next_scale,
        )
        return transition, info

    def steps(self, residual_action: Tensor) -> Iterator[tuple[Transition, dict[str, Any]]]:
        """Execute `residual_action` env step by env step: what each of them, here the one, leads to."""
        yield self.step(residual_action)

    def _tell(self, info: dict[str, Any], penalty: Tensor, scale: float | Tensor, uncertainty: Tensor) -> None:
        """Add to what the env tells of a step what the residual cost [B] and was scaled by."""
        info["reward_terms"]["residual"] = penalty
        info["residual_scale"] = scale
        if self.scale_rule is not None:
            info["base_uncertainty"] = uncertainty
        self._penalties = self._penalties + penalty
        info["final_info"]["episode_return"] = info["final_info"]["episode_return"] + self._penalties
        self._penalties = self._penalties.masked_fill(info["_final_info"], 0.0)

    def state_dict(self) -> State:
        """Env, base policy and the current base action."""
        return {
            "env": self.env.state_dict(),
            "base_policy": self.base_policy.state_dict(),
            "base_action": self.obs["base_action"],
            "penalties": self._penalties,
            "residual_scale": self.residual_scale,
        }

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.env.load_state_dict(state["env"])
        self.base_policy.load_state_dict(state["base_policy"])
        self.residual_scale = state["residual_scale"]
        self._penalties = state["penalties"].to(self.device)
        self.obs = {**self.env.observations(), "base_action": state["base_action"].to(self.device)}

    def close(self) -> None:
        """Free the worlds."""
        self.env.close()
