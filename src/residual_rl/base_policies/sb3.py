"""The policy of a Stable-Baselines3 model, as a base policy or as a residual policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.base_policies.model_inputs import (
    FIX_INPUTS,
    check_actions,
    check_size,
    input_shapes,
    join_inputs,
    probe,
)
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.types import BasePolicy, Obs

_RESIDUAL_KEYS = ("state", "base_action")
"""What a task's Gymnasium env with a base policy observes, joined in this order."""


class SB3Network:
    """The deterministic policy of a Stable-Baselines3 model, as a function of named observations.

    Its actions equal those of `model.predict(obs, deterministic=True)` up to rounding: it computes in
    float64, so that an action does not depend on the size of the batch.

    Args:
        policy: the result of `trusted.read_sb3_policy`.
        vector_keys: observations that are joined, in this order, if its observation is a vector.
        name: its name in error messages.
    """

    def __init__(self, policy: Any, vector_keys: Sequence[str], name: str):
        from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

        # Compute in float64, although Stable-Baselines3 casts observations to float32.
        self.policy = policy.double()
        for module in policy.modules():
            if isinstance(module, BaseFeaturesExtractor):
                module.register_forward_pre_hook(lambda _, inputs: tuple(_double(value) for value in inputs))
        self._name = name
        self._named = isinstance(policy.observation_space, spaces.Dict)
        self.keys = tuple(policy.observation_space.spaces) if self._named else tuple(vector_keys)
        """The observations that it reads."""
        self._channels_first: set[str] = set()

    def check(self, shapes: Mapping[str, tuple[int, ...]], num_actions: int, fix: str) -> None:
        """Raise `ConfigError`, which ends with `fix`, unless the shapes of the observations and the number of
        actions fit."""
        check_actions(self.policy.action_space, num_actions, self._name)
        space = self.policy.observation_space
        if not self._named:
            check_size(shapes, space.shape, self._name, fix)
            return
        for key, wanted in space.spaces.items():
            height_first = shapes[key]
            if wanted.shape != height_first and wanted.shape == (*height_first[2:], *height_first[:2]):
                self._channels_first.add(key)
            elif wanted.shape != height_first:
                raise ConfigError(
                    f"{self._name} was trained on {key!r} of shape {wanted.shape}; "
                    f"this env's is {height_first}"
                )

    @torch.no_grad()
    def __call__(self, obs: Obs) -> Tensor:
        """Actions [b, A]."""
        if self._named:
            views = {
                k: obs[k].permute(0, 3, 1, 2) if k in self._channels_first else obs[k] for k in self.keys
            }
            action = self.policy._predict({k: value.cpu() for k, value in views.items()}, deterministic=True)
        else:
            action = self.policy._predict(join_inputs(obs, self.keys).cpu(), deterministic=True)
        actions: Tensor = action.float()
        return actions


class SB3Policy(BasePolicy):
    """A Stable-Baselines3 model as a base policy; see `SB3Network`.

    Args:
        policy: the result of `trusted.read_sb3_policy`.
        input_keys: observations that are joined for a policy with vector observations.
        env: the env, whose observations and actions must fit `policy`.
        name: name of the policy in error messages.

    Raises:
        ConfigError: `policy` does not fit `env`.
    """

    def __init__(self, policy: Any, input_keys: Sequence[str], env: VecEnv, name: str):
        self._network = SB3Network(policy, input_keys, name)
        self.inputs = input_shapes(self._network.keys, env.single_observation_space, name)  # type: ignore[misc]
        self._network.check(self.inputs, len(env.action_unit), FIX_INPUTS)
        probe(self, env, name)

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:  # noqa: ARG002
        return self._network(obs)[:, None]


class SB3Residual:
    """A Stable-Baselines3 model as a residual policy, trained on `gymnasium.make(id, base_policy=…)`.

    Args:
        policy: the result of `trusted.read_sb3_policy`.
        residual_scale: the residual scale to run it with; the model does not store it.
        name: name of the policy in error messages.
    """

    def __init__(self, policy: Any, residual_scale: float, name: str):
        self.residual_scale = residual_scale
        self._network = SB3Network(policy, _RESIDUAL_KEYS, name)
        self._name = name

    def actor(self, obs_space: spaces.Dict, action_dim: int, device: torch.device) -> Callable[[Obs], Tensor]:
        """The residual policy, computed on the CPU; see `ExportedPolicy.actor`. Raises `ConfigError` if the
        model does not fit the observations."""
        shapes = input_shapes(self._network.keys, obs_space, self._name)
        fix = "evaluate it with the task's settings and the kind of base policy that it was trained with"
        self._network.check(shapes, action_dim, fix)
        return lambda obs: self._network(obs).clamp(-1.0, 1.0).to(device)


def _double(value: Any) -> Any:
    return {k: v.double() for k, v in value.items()} if isinstance(value, dict) else value.double()
