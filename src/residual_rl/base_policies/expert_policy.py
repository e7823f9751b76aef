"""A base policy that executes the env's scripted expert, made imperfect on request."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_rl.base_policies.expert import ExpertCfg
from residual_rl.envs.spaces import EXPERT_ACTION, observed, shape_of
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.types import BasePolicy, Obs
from residual_rl.utils.seeding import noise_of


class ExpertPolicy(BasePolicy):
    """The expert's action in the observation, times a gain, plus a bias and noise.

    The expert is closed-loop: it acts on the state that the residual and the bias have led to.

    Args:
        cfg: the settings.
        env: the env, which observes `expert_action`.

    Raises:
        ConfigError: the env has no expert, or the bias has a wrong number of values.
    """

    def __init__(self, cfg: ExpertCfg, env: VecEnv):
        names = observed(env)
        if EXPERT_ACTION not in names:
            raise ConfigError(
                "this env has no expert; one of the task gymnasium has it if its --adapter has a method"
                " `expert(env, obs)`, which returns an action"
            )
        num_actions = shape_of(env, EXPERT_ACTION)[0]
        if len(cfg.bias) not in (0, 1, num_actions):
            raise ConfigError(f"bias must have 1 or {num_actions} values, not {len(cfg.bias)}")
        # noise differs between states in which the expert acts alike
        noise_inputs = ("state",) if cfg.noise and "state" in names else ()
        inputs = (EXPERT_ACTION, *noise_inputs)
        self.inputs = {name: shape_of(env, name) for name in inputs}  # type: ignore[misc]
        self._cfg = cfg
        self._bias = torch.tensor(cfg.bias or (0.0,), device=env.device)

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:  # noqa: ARG002
        cfg = self._cfg
        action = cfg.gain * obs[EXPERT_ACTION] + self._bias
        if cfg.noise:
            action = action + cfg.noise * noise_of(obs, cfg.seed, action.shape[1:]).float()
        return action[:, None]


def make(cfg: ExpertCfg, env: VecEnv) -> ExpertPolicy:
    """The expert of `env`."""
    return ExpertPolicy(cfg, env)
