"""The policy of a Stable-Baselines3 model as a base policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.base_policies.model_inputs import check_actions, check_size, input_shapes, join_inputs, probe
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.types import BasePolicy, Obs


class SB3Policy(BasePolicy):
    """The deterministic policy of a Stable-Baselines3 model.

    Its actions equal those of `model.predict(obs, deterministic=True)` up to rounding: it computes in
    float64, so that an action does not depend on the size of the batch.

    Args:
        policy: the result of `trusted.read_sb3_policy`.
        input_keys: observations that are joined for a policy with vector observations.
        env: the env, whose observations and actions must fit `policy`.
        name: name of the policy in error messages.

    Raises:
        ConfigError: `policy` does not fit `env`.
    """

    def __init__(self, policy: Any, input_keys: Sequence[str], env: VecEnv, name: str):
        from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

        # Compute in float64, although Stable-Baselines3 casts observations to float32.
        self._policy = policy.double()
        for module in policy.modules():
            if isinstance(module, BaseFeaturesExtractor):
                module.register_forward_pre_hook(lambda _, inputs: tuple(_double(value) for value in inputs))

        # Check that the spaces fit.
        check_actions(policy.action_space, env, name)
        space = policy.observation_space
        self._keys = tuple(space.spaces) if isinstance(space, spaces.Dict) else tuple(input_keys)
        self._joined = not isinstance(space, spaces.Dict)
        self.inputs = input_shapes(self._keys, env, name)  # type: ignore[misc]
        self._channels_first = set()
        if self._joined:
            check_size(self.inputs, space.shape, name)
        else:
            for key, wanted in space.spaces.items():
                height_first = self.inputs[key]
                if wanted.shape != height_first and wanted.shape == (*height_first[2:], *height_first[:2]):
                    self._channels_first.add(key)
                elif wanted.shape != height_first:
                    raise ConfigError(
                        f"{name} was trained on {key!r} of shape {wanted.shape}; this env's is {height_first}"
                    )
        probe(self, env, name)

    @torch.no_grad()
    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:  # noqa: ARG002
        if self._joined:
            action = self._policy._predict(join_inputs(obs, self._keys).cpu(), deterministic=True)
        else:
            views = {
                k: obs[k].permute(0, 3, 1, 2) if k in self._channels_first else obs[k] for k in self._keys
            }
            action = self._policy._predict({k: value.cpu() for k, value in views.items()}, deterministic=True)
        chunk: Tensor = action.float()[:, None]
        return chunk


def _double(value: Any) -> Any:
    return {k: v.double() for k, v in value.items()} if isinstance(value, dict) else value.double()
