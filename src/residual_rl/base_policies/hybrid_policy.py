"""Several base policies as one: a fixed blend, a switch between them, or an ensemble with its
disagreement."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from residual_rl.base_policies.callables import load_callable
from residual_rl.base_policies.executor import make_base_policy
from residual_rl.base_policies.hybrid import HybridCfg
from residual_rl.envs.spaces import observed, shape_of
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, ConfigError, UnknownNameError
from residual_rl.types import ActionChunk, BasePolicy, Obs, State

Switch = Callable[[Obs], Tensor]
"""Maps observations [b, …] to the number of the acting policy, int64 [b], counted from 0."""


class HybridPolicy(BasePolicy):
    """A blend, a switch or an ensemble of base policies.

    Every policy is queried at every observation, whether it acts or not, so that its phase, history and
    chunks follow the episode.

    Args:
        cfg: the settings.
        env: the env, which all policies must fit.
    """

    def __init__(self, cfg: HybridCfg, env: VecEnv):
        if not cfg.policies:
            raise ConfigError("at least two base policies are needed: --base.policies ID ID …")
        self._cfg = cfg
        self._members = [
            make_base_policy(id, member, env, f"policy {i}, {id!r}")
            for i, (id, member) in enumerate(zip(cfg.policies, cfg.members(), strict=True))
        ]
        names = {name for member in self._members for name in member.policy.inputs}
        if cfg.switch:
            names = set(observed(env))  # a function may read any observation
        if cfg.switch_on:
            if cfg.switch_on not in observed(env):
                raise UnknownNameError("observation to switch on", cfg.switch_on, observed(env))
            names.add(cfg.switch_on)
        self.inputs = {name: shape_of(env, name) for name in sorted(names)}  # type: ignore[misc]
        self.remote = any(member.policy.remote for member in self._members)
        self._function: Switch | None = load_callable(cfg.switch, "switch") if cfg.switch else None
        self._switched = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device)
        """[B] bool: envs where the second policy has taken over."""
        equal = (1.0 / len(self._members),) * len(self._members)
        self._weights = torch.tensor(cfg.weights or equal, dtype=torch.float64, device=env.device)

    def reset(self, mask: Tensor) -> None:
        self._switched = self._switched & ~mask
        for member in self._members:
            member.reset(mask)

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor | ActionChunk:
        actions = torch.stack([member.act_rows(obs, env_ids) for member in self._members])  # [n, b, A]
        if self._cfg.mode == "switch":
            chosen = self._chosen(obs, env_ids)
            return actions[chosen, torch.arange(len(env_ids), device=actions.device)][:, None]
        if self._cfg.mode == "blend":
            return (self._weights[:, None, None] * actions).sum(0)[:, None]
        actions = actions.double()
        return ActionChunk(actions.mean(0)[:, None], actions.std(0, correction=0).mean(-1)[:, None])

    def _chosen(self, obs: Obs, env_ids: Tensor) -> Tensor:
        """The number of the acting policy, int64 [b]."""
        if self._function is not None:
            return self._call_switch(self._function, obs, len(env_ids))
        norm = obs[self._cfg.switch_on].flatten(1).double().norm(dim=1)
        switched = self._switched[env_ids] | (norm < self._cfg.switch_below)
        self._switched = self._switched.index_copy(0, env_ids, switched)
        return switched.long()

    def _call_switch(self, function: Switch, obs: Obs, num_rows: int) -> Tensor:
        try:
            chosen = function(obs)
        except Exception as error:
            raise BasePolicyError(f"{self._cfg.switch} failed: {type(error).__name__}: {error}") from error
        wanted = f"expected an int64 tensor of shape {(num_rows,)} from 0 to {len(self._members) - 1}"
        if not isinstance(chosen, Tensor):
            raise BasePolicyError(f"{self._cfg.switch} gave {type(chosen).__name__}; {wanted}")
        if chosen.dtype != torch.int64 or tuple(chosen.shape) != (num_rows,):
            raise BasePolicyError(f"{self._cfg.switch} gave {chosen.dtype} {tuple(chosen.shape)}; {wanted}")
        if num_rows and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self._members):
            raise BasePolicyError(f"{self._cfg.switch} gave {sorted(set(chosen.tolist()))}; {wanted}")
        return chosen

    def state_dict(self) -> State:
        return {"switched": self._switched, "members": [member.state_dict() for member in self._members]}

    def load_state_dict(self, state: State) -> None:
        self._switched = state["switched"].to(self._switched.device)
        for member, saved in zip(self._members, state["members"], strict=True):
            member.load_state_dict(saved)


def make(cfg: HybridCfg, env: VecEnv) -> HybridPolicy:
    """The policies of `cfg` as one, for `env`."""
    return HybridPolicy(cfg, env)
