"""The env that a learner acts in: a vec_env, a base policy, and the composition of base and residual."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.composition import Composition, compose, residual_penalty
from residual_rl.envs.spaces import CHUNK_OBS, with_base_action
from residual_rl.envs.start_states import StartStates
from residual_rl.envs.step_check import StepCheck
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.registry import check_metric_names
from residual_rl.runs.progress import Timer
from residual_rl.types import Obs, State, Transition


class StepHook(Protocol):
    """Runs around every step of the vec_env; assign one to `ResidualEnv.step_hook`."""

    def before_step(self, action: Tensor, stepping: Tensor) -> Tensor:
        """Receive the composed `action` [B, A] of the envs in `stepping` [B] bool; return the action to
        execute."""
        ...

    def after_step(self, obs: Obs) -> None:
        """Receive the observation [B, …] after the step; where an episode ended, the first of the next."""
        ...


@dataclass(frozen=True)
class _Outcome:
    """The result of one step of the vec_env, with the residual penalty in the reward."""

    action: Tensor
    """[B, A]: the executed action."""
    next_obs: Obs
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    info: dict[str, Any]


class ResidualEnv:
    """Executes compositions of base and residual actions in a vec_env.

    The base policy is queried once per observation: first for the final observations of ending episodes,
    then, after it is reset in those envs, for the new ones. The base action of an observation is the one that
    is executed and the one in the transition.

    Args:
        vec_env: the envs.
        base_policy: checked against `vec_env`; not shared with another ResidualEnv.
        composition: combines the actions. A plain number is a residual scale in the env's `residual_unit`.
        penalty: weight of `‖residual_scale · residual_action‖²` in the reward.
        chunk_obs: also observe `base_chunk` and `chunk_position`, see `BasePolicyExecutor`.

    Raises:
        ConfigError: `chunk_obs` over a base policy that executes one action of each chunk, or for decisions
            on whole chunks; in the first `reset`, if the scale is adaptive and the base policy has no
            uncertainty.
    """

    def __init__(
        self,
        vec_env: VecEnv,
        base_policy: BasePolicyExecutor,
        composition: Composition | float,
        penalty: float = 0.0,
        chunk_obs: bool = False,
    ):
        self.vec_env = vec_env
        self.base_policy = base_policy
        if chunk_obs:
            self._check_chunk_obs()
        self.chunk_obs = chunk_obs
        """Whether `base_chunk` and `chunk_position` are observed."""
        if not isinstance(composition, Composition):
            composition = Composition(composition, unit=vec_env.residual_unit)
        self.composition = composition
        """May be replaced between steps."""
        self.penalty = penalty
        self.num_envs = vec_env.num_envs
        self.device = vec_env.device
        self.step_hook: StepHook | None = None
        self.timer = Timer()
        self._check = StepCheck()
        self._penalties = torch.zeros(self.num_envs, device=self.device)
        """[B]: sum of the penalties of each env's episode so far."""
        self.env_steps = 0
        """Env steps taken by this object, summed over envs. Envs that wait take none."""
        self.start_states: StartStates | None = None
        """States in which some of the later episodes start; None: all start as the task says. Only for a
        `vec_env` that can be restored."""
        self.restarted = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        """[B] bool: the envs whose episode started in one of `start_states`."""
        self.obs: Obs = {}
        """The current observation, including `base_action` [B, A], `elapsed_steps` [B, 1] and, with
        `chunk_obs`, `base_chunk` [B, n·A] and `chunk_position` [B, 1]."""

    @property
    def residual_scale(self) -> float:
        """The bound of the residual; may be set between steps."""
        return self.composition.scale

    @residual_scale.setter
    def residual_scale(self, scale: float) -> None:
        self.composition = self.composition.with_scale(scale)

    @property
    def observation_space(self) -> spaces.Dict:
        """The observation space of one env, including `base_action`."""
        return with_base_action(
            self.vec_env, self.base_policy.policy.num_action_steps if self.chunk_obs else None
        )

    @property
    def steps_per_action(self) -> int:
        """Number of env steps that one residual action covers."""
        return 1

    @property
    def can_restore(self) -> bool:
        """Whether episodes can start in states of earlier ones."""
        return self.vec_env.can_restore

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.vec_env.action_unit)

    def reset(self, seed: int | Sequence[int] | None = None) -> Obs:
        """Start a new episode in every env."""
        obs, _ = self.vec_env.reset(seed=seed)
        self._check(obs, obs)
        self.base_policy.reset(torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
        self._penalties = torch.zeros_like(self._penalties)
        self.restarted = torch.zeros_like(self.restarted)
        self.obs = {**obs, **self._base_obs(obs, self.vec_env.active)}
        if self.composition.adaptive and not self.base_policy.has_uncertainty:
            raise ConfigError(
                f"{self.base_policy.name} has no uncertainty, which --adaptive uncertainty needs; choose a"
                " hybrid in mode ensemble or a policy with several samples, or --adaptive off"
            )
        return self.obs

    def keep(self, mask: Tensor) -> None:
        """Add the states of the envs in `mask` [B] bool to `start_states`."""
        assert self.start_states is not None
        env_ids = mask.to(self.device).nonzero().flatten()
        if not len(env_ids):
            return
        self.start_states.add(self._snapshot(env_ids))

    def _snapshot(self, env_ids: Tensor) -> Obs:
        """The states of the envs `env_ids` [n], [n, …] each by name."""
        env = {f"env/{name}": value for name, value in self.vec_env.snapshot(env_ids).items()}
        base = {f"base/{name}": value for name, value in self.base_policy.snapshot(env_ids).items()}
        own = {"base_action": self.obs["base_action"][env_ids], "penalty": self._penalties[env_ids]}
        return env | base | own

    def _begin_episodes(self, ended: Tensor, obs: Obs) -> tuple[Obs, Obs]:
        """The observations of env and base policy after a reset of the envs `ended` [B]. Some of them go on
        from one of `start_states`."""
        restored = torch.zeros_like(ended)
        env_ids = (ended & self.vec_env.active).nonzero().flatten()
        states: Obs = {}
        if self.start_states is not None:
            chosen, states = self.start_states.draw(len(env_ids))
            env_ids = env_ids[chosen.to(self.device)]
            restored[env_ids] = True
        self.restarted = torch.where(ended, restored, self.restarted)
        if not restored.any():
            return obs, self._base_obs(obs, self.vec_env.active)

        # The base policy has been queried for these states before, and must not be again.
        obs = self.vec_env.restore(env_ids, _named(states, "env/"))
        self.base_policy.restore(env_ids, _named(states, "base/"))
        self._penalties = self._penalties.index_copy(0, env_ids, states["penalty"])
        base = self._base_obs(obs, self.vec_env.active & ~restored)
        base["base_action"] = base["base_action"].index_copy(0, env_ids, states["base_action"])
        return obs, base

    def _check_chunk_obs(self) -> None:
        names = " and ".join(CHUNK_OBS)
        if self.base_policy.policy.num_action_steps == 1:
            raise ConfigError(
                f"{self.base_policy.name} executes one action of each chunk (num_action_steps 1), so there is"
                f" no {names} to observe: leave them out of --obs-keys"
            )
        if self.steps_per_action > 1:
            raise ConfigError(
                f"with --chunk whole, base_action is the whole chunk, and there is no {names} to observe:"
                " leave them out of --obs-keys"
            )

    def _base_action(self, obs: Obs, mask: Tensor) -> Tensor:
        """The base action that a residual action for `obs` is added to, valid in the envs of `mask` [B]."""
        return self.base_policy.act(obs, mask)

    def _base_obs(self, obs: Obs, mask: Tensor) -> Obs:
        """Query the base policy for `obs`, in the envs of `mask` [B]: what a learner observes of it."""
        base_action = self._base_action(obs, mask)
        known = {"base_action": base_action, "elapsed_steps": self.base_policy.elapsed_steps}
        return known | self.base_policy.chunk_obs if self.chunk_obs else known

    def step(self, residual_action: Tensor) -> tuple[Transition, dict[str, Any]]:
        """Execute `residual_action` [B, A] in [-1, 1].

        Returns:
            The transition, and the vec_env's `info`. `restarted` [B] tells which of the episodes had started
            in one of `start_states`. The residual penalty is included in its reward terms and in
            `episode_return`. `residual_scale` is the bound of the residual in this step. With an adaptive
            scale, `base_uncertainty` [B] is included.
        """
        obs = self.obs
        base_action = obs["base_action"]
        residual_action = residual_action.detach().to(self.device)  # the learner may be on another device
        effective_scale = self.composition.effective_scale(self.base_policy.uncertainty)
        outcome = self._execute(base_action, residual_action, None)

        # Query the base policy for final observations first, reset it, then query it for the new ones.
        start = time.perf_counter()
        info = outcome.info
        ended, final_obs = info["_final_obs"], info["final_obs"]
        active = self.vec_env.active  # an env without an episode needs no base action
        if ended.any():
            final_base = self._base_obs(final_obs, ended)
            final_scale = self.composition.effective_scale(self.base_policy.uncertainty)
            self.base_policy.reset(ended)
            next_obs, next_base = self._begin_episodes(ended, outcome.next_obs)
            true_next_base = {
                name: torch.where(ended[:, None], value, next_base[name])
                for name, value in final_base.items()
            }
            next_scale = self.composition.effective_scale(self.base_policy.uncertainty)
            if self.composition.adaptive:
                next_scale = torch.where(
                    ended[:, None], torch.as_tensor(final_scale), torch.as_tensor(next_scale)
                )
        else:
            next_obs = outcome.next_obs
            next_base = true_next_base = self._base_obs(outcome.next_obs, active)
            next_scale = self.composition.effective_scale(self.base_policy.uncertainty)
        self.timer.base_policy += time.perf_counter() - start

        self.obs = {**next_obs, **next_base}
        transition = Transition(
            obs=obs,
            residual_action=residual_action,
            reward=outcome.reward,
            terminated=outcome.terminated,
            truncated=outcome.truncated,
            next_obs={**final_obs, **true_next_base},
            base_action=base_action,
            action=outcome.action,
            effective_scale=effective_scale,
            next_effective_scale=next_scale,
            success=info["_final_info"] & info["final_info"]["success_once"].bool(),
        )
        return transition, info

    def steps(self, residual_action: Tensor) -> Iterator[tuple[Transition, dict[str, Any]]]:
        """Execute `residual_action` and yield the result of each env step; here there is one."""
        yield self.step(residual_action)

    def _execute(self, base_action: Tensor, residual_action: Tensor, stepping: Tensor | None) -> _Outcome:
        """Compose and execute one step of the vec_env in the envs of `stepping` [B] (None: all), with the
        hook."""
        # Compose. The scale of idle envs is 0, so that an adaptive one does not enter their metrics.
        uncertainty = self.base_policy.uncertainty
        scale = self.composition.residual_scale(uncertainty)
        if stepping is not None and isinstance(scale, Tensor):
            scale = scale * stepping[:, None]
        action = compose(base_action, residual_action, self.composition.in_actions(scale))

        # Step the vec_env.
        if self.step_hook is not None:
            active = self.vec_env.active
            action = self.step_hook.before_step(action, active if stepping is None else active & stepping)
        start = time.perf_counter()
        next_obs, reward, terminated, truncated, info = (
            self.vec_env.step(action) if stepping is None else self.vec_env.step(action, stepping)
        )
        self.timer.simulation += time.perf_counter() - start
        action = info.get("executed_action", action)
        self.env_steps += self.num_envs if stepping is None else int(stepping.sum())
        if self.step_hook is not None:
            self.step_hook.after_step(next_obs)

        # Check what the env returned. Observations that are not reset are the same tensors.
        final_obs = {
            f"final {name}": torch.where(_rows_of(info["_final_obs"], value), value, 0.0)
            for name, value in info["final_obs"].items()
            if value is not next_obs[name] and value.is_floating_point()
        }
        self._check({"action": action, "reward": reward[:, None], **next_obs, **final_obs}, self.obs)
        check_metric_names(self.vec_env.task_name or "the env", info["task_metrics"])
        if "residual" in info["reward_terms"]:
            raise ConfigError("the env has a reward term named residual, as ours is: rename it")

        # Add the residual penalty and scale to the info of the env.
        penalty = residual_penalty(residual_action, scale, self.penalty)
        info["reward_terms"] = {**info["reward_terms"], "residual": penalty}
        info["residual_scale"] = scale
        info["restarted"] = self.restarted
        if self.composition.adaptive:
            info["base_uncertainty"] = uncertainty
        self._penalties = self._penalties + penalty
        info["final_info"]["episode_return"] = info["final_info"]["episode_return"] + self._penalties
        self._penalties = self._penalties.masked_fill(info["_final_info"], 0.0)
        return _Outcome(action, next_obs, reward + penalty, terminated, truncated, info)

    def state_dict(self) -> State:
        """The states of the vec_env and the base policy, and the current base action."""
        return {
            "env": self.vec_env.state_dict(),
            "base_policy": self.base_policy.state_dict(),
            "base_action": self.obs["base_action"],
            "penalties": self._penalties,
            "residual_scale": self.residual_scale,
            "restarted": self.restarted,
            "start_states": None if self.start_states is None else self.start_states.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a state returned by `state_dict`."""
        self.vec_env.load_state_dict(state["env"])
        self.base_policy.load_state_dict(state["base_policy"])
        self.residual_scale = state["residual_scale"]
        self._penalties = state["penalties"].to(self.device)
        self.restarted = state["restarted"].to(self.device, torch.bool).reshape(self.num_envs)
        base = {"base_action": state["base_action"].to(self.device)}
        base["elapsed_steps"] = self.base_policy.elapsed_steps
        if self.chunk_obs:
            base |= self.base_policy.chunk_obs
        self.obs = {**self.vec_env.observations(), **base}
        if self.start_states is not None:
            example = self._snapshot(torch.zeros(1, dtype=torch.int64, device=self.device))
            self.start_states.load_state_dict(state["start_states"], example)

    def close(self) -> None:
        """Free the envs."""
        self.vec_env.close()


def _named(values: Obs, prefix: str) -> Obs:
    """Those of `values` whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _rows_of(mask: Tensor, value: Tensor) -> Tensor:
    """`mask` [B] in the shape of `value` [B, …], for broadcasting."""
    return mask.reshape(-1, *[1] * (value.dim() - 1))
