"""A user's Python function or class as a base policy."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from residual_rl.base_policies.callables import CallablePolicy, load_callable
from residual_rl.base_policies.model_inputs import input_shapes
from residual_rl.base_policies.python import PythonCfg
from residual_rl.envs.spaces import observed
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, ConfigError
from residual_rl.types import BasePolicy, Obs, State

_log = logging.getLogger(__name__)


class PythonPolicy(BasePolicy):
    """Calls `cfg.function`, see `CallablePolicy`, with observations as NumPy arrays.

    Its state is part of a checkpoint if it has `state_dict()` and `load_state_dict(state)`.

    Args:
        cfg: the settings.
        env: the env, whose observations and number of actions must fit.

    Raises:
        ConfigError: the function cannot be imported, or does not fit `env`.
    """

    def __init__(self, cfg: PythonCfg, env: VecEnv):
        if not cfg.function:
            raise ConfigError("a policy is needed: --base.function MODULE:NAME")
        keys = cfg.input_keys or tuple(observed(env))
        self.inputs = input_shapes(keys, env.single_observation_space, cfg.function)  # type: ignore[misc]
        self.chunk_size = cfg.chunk_size
        self.num_action_steps = cfg.num_action_steps or cfg.chunk_size
        self._cfg = cfg
        self._num_envs = env.num_envs
        self._device = env.device
        self._action_dim = len(env.action_unit)
        function = load_callable(cfg.function, "function")
        self._policy = CallablePolicy(function, env.num_envs, cfg.batched, cfg.function)
        self._policy.check_queries_of_some()

    def reset(self, mask: Tensor) -> None:
        self._policy.reset(mask.cpu().numpy())

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        # The function may write to its arrays, but not to the observations.
        arrays = {name: obs[name].cpu().numpy().copy() for name in self.inputs}
        single = len(self._cfg.input_keys) == 1
        actions = self._policy(arrays[self._cfg.input_keys[0]] if single else arrays, env_ids.cpu().numpy())
        shape = (len(env_ids), self._cfg.chunk_size, self._action_dim)
        if actions.shape != shape and not (
            self._cfg.chunk_size == 1 and actions.shape == (shape[0], shape[2])
        ):
            raise BasePolicyError(self._wrong_shape(tuple(actions.shape)))
        low, high = self._cfg.action_range
        middle, half = (high + low) / 2.0, (high - low) / 2.0
        return ((actions.to(self._device) - middle) / half).reshape(shape)

    def _wrong_shape(self, found: tuple[int, ...]) -> str:
        """The error for actions of the shape `found`, [b, …]."""
        chunk, dim = self._cfg.chunk_size, self._action_dim
        if self._cfg.batched:
            expected = f"(b, {dim})" if chunk == 1 else f"(b, {chunk}, {dim})"
            return f"{self._cfg.function} gave actions of shape {found}; expected {expected}"
        expected = f"({dim},)" if chunk == 1 else f"({chunk}, {dim})"
        return (
            f"{self._cfg.function} gave an action of shape {found[1:]}; expected {expected}"
            " (--base.chunk-size for several actions at once, --base.batched for several envs)"
        )

    def state_dict(self) -> State:
        return {"policies": self._policy.state_dicts()}

    def load_state_dict(self, state: State) -> None:
        if self._policy.load_state_dicts(state["policies"]):
            return
        _log.warning(
            "%s has a reset but no state_dict and load_state_dict: it starts anew in the middle of the"
            " episodes that are resumed",
            self._cfg.function,
        )
        self._policy.reset(torch.ones(self._num_envs, dtype=torch.bool).numpy())


def make(cfg: PythonCfg, env: VecEnv) -> PythonPolicy:
    """The policy of `cfg`, for `env`."""
    return PythonPolicy(cfg, env)
