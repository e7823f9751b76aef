"""The one executor of base policies: chunks per world, checks, and errors with a name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, CheckpointError, ConfigError, NonFiniteError, ResidualRLError
from residual_rl.registry import BASE_POLICIES, load
from residual_rl.types import ActionChunk, BasePolicy, Obs, State, check_finite


class BasePolicyExecutor:
    """Asks `policy` for chunks and plays them out, world by world.

    Args:
        policy: checked against `env`: each of its `inputs` must be observed, with the same shape.
        env: the vec_env whose observations it will get.
        name: how errors call the policy.
    """

    def __init__(self, policy: BasePolicy, env: VecEnv, name: str = "base policy"):
        self.policy, self.name = policy, name
        self._num_envs, self._device = env.num_envs, env.device
        self._action_dim = int(env.single_action_space.shape[0])  # type: ignore[index]
        if not 1 <= policy.num_action_steps <= policy.chunk_size:
            raise ConfigError(
                f"{name}: num_action_steps must be from 1 to chunk_size {policy.chunk_size}, not {policy.num_action_steps}"
            )
        observed = {
            key: tuple(space.shape or ()) for key, space in env.single_observation_space.spaces.items()
        }  # type: ignore[attr-defined]
        for key, shape in policy.inputs.items():
            if key not in observed:
                raise ConfigError(
                    f"{name} needs the observation {key!r} {tuple(shape)}; the env has {', '.join(sorted(observed))}"
                )
            if observed[key] != tuple(shape):
                raise ConfigError(
                    f"{name} needs {key!r} of shape {tuple(shape)}; the env gives {observed[key]}"
                )
        self._everyone = torch.arange(self._num_envs, device=self._device)
        self._chunk = torch.zeros(self._num_envs, policy.chunk_size, self._action_dim, device=self._device)
        self._spread = torch.zeros(self._num_envs, policy.chunk_size, device=self._device)
        self._pointer = torch.full((self._num_envs,), policy.num_action_steps, device=self._device)
        self.uncertainty = torch.zeros(self._num_envs, device=self._device)
        """[B]: how unsure the policy is of the base action that it gave last; 0 where it does not tell."""
        self.has_uncertainty = False
        """Whether its last plan told how unsure it is."""
        self._history: Obs = {}
        """The last H observations [B, H, …] of each input, where the policy plans from more than one."""
        self._begins = torch.ones(self._num_envs, dtype=torch.bool, device=self._device)
        """[B]: worlds whose next observation is the first of their episode."""

    def reset(self, mask: Tensor) -> None:
        """Drop the chunks and the state of the worlds in `mask` [B] bool."""
        self._pointer = self._pointer.masked_fill(mask, self.policy.num_action_steps)
        self._begins = self._begins | mask
        with self._named_errors():
            self.policy.reset(mask)

    def drop_chunks(self, mask: Tensor) -> None:
        """Let the worlds in `mask` [B] bool plan anew for their next observation, with all their state."""
        self._pointer = self._pointer.masked_fill(mask, self.policy.num_action_steps)

    @property
    def chunk(self) -> Tensor:
        """[B, n, A]: the steps that each world's present plan is executed for."""
        return self._chunk[:, : self.policy.num_action_steps]

    def act(self, obs: Obs, mask: Tensor | None = None) -> Tensor:
        """The base action [B, A] in [-1, 1] for `obs`, valid in the worlds of `mask` [B] bool. Call it once per observation."""
        if mask is None or mask.all():
            return self.act_rows(obs, self._everyone)
        env_ids = mask.nonzero().flatten()
        action = torch.zeros(self._num_envs, self._action_dim, device=self._device)
        if len(env_ids):
            action[env_ids] = self.act_rows(
                {name: obs[name][env_ids] for name in self.policy.inputs}, env_ids
            )
        return action

    @torch.no_grad()
    def act_rows(self, obs: Obs, env_ids: Tensor) -> Tensor:
        """The base action [b, A] of the `env_ids` [b] (distinct int64 indices), whose rows `obs` holds. Call it once per observation."""
        inputs = {name: obs[name] for name in self.policy.inputs}
        if self.policy.num_obs_steps > 1:
            inputs = self._remember(inputs, env_ids)
        pointer = self._pointer[env_ids]
        spent = pointer >= self.policy.num_action_steps
        if spent.all():
            self._plan(inputs, env_ids)
            pointer = torch.zeros_like(pointer)
        elif spent.any():
            rows = spent.nonzero().flatten()
            self._plan({name: value[rows] for name, value in inputs.items()}, env_ids[rows])
            pointer = pointer.masked_fill(spent, 0)
        self._pointer = self._pointer.index_copy(0, env_ids, pointer + 1)
        self.uncertainty = self.uncertainty.index_copy(0, env_ids, self._spread[env_ids, pointer])
        return self._chunk[env_ids, pointer]

    def _remember(self, inputs: Obs, env_ids: Tensor) -> Obs:
        """The last H observations [b, H, …] of the `env_ids`, `inputs` [b, …] included; an episode's first stands for those before it."""
        begins = self._begins[env_ids]
        windows = {}
        for name, value in inputs.items():
            if name not in self._history:
                shape = (self._num_envs, self.policy.num_obs_steps, *value.shape[1:])
                self._history[name] = torch.zeros(shape, dtype=value.dtype, device=value.device)
            repeated = value[:, None].expand(-1, self.policy.num_obs_steps, *value.shape[1:])
            moved = torch.cat([self._history[name][env_ids, 1:], value[:, None]], 1)
            windows[name] = torch.where(begins.reshape(-1, *[1] * value.dim()), repeated, moved)
            self._history[name] = self._history[name].index_copy(0, env_ids, windows[name])
        self._begins = self._begins.index_fill(0, env_ids, False)
        return windows

    def _plan(self, inputs: Obs, env_ids: Tensor) -> None:
        """Take a new chunk for the `env_ids` [b], clipped to the action space: what is stored is what can be executed."""
        with self._named_errors():
            plan = self.policy.predict_action_chunk(inputs, env_ids)
        chunk, uncertainty = (
            (plan.actions, plan.uncertainty) if isinstance(plan, ActionChunk) else (plan, None)
        )
        expected = (len(env_ids), self.policy.chunk_size, self._action_dim)
        if not isinstance(chunk, Tensor) or tuple(chunk.shape) != expected:
            got = tuple(chunk.shape) if isinstance(chunk, Tensor) else type(chunk).__name__
            raise BasePolicyError(
                f"{self.name} gave {got}; expected a tensor of shape {expected} (worlds, chunk_size, action)"
            )
        if uncertainty is not None and tuple(uncertainty.shape) != expected[:2]:
            raise BasePolicyError(
                f"{self.name} gave an uncertainty of {tuple(uncertainty.shape)}; expected {expected[:2]} (worlds, chunk_size)"
            )
        try:
            check_finite(f"the base action of {self.name}", chunk)
            if uncertainty is not None:
                check_finite(f"the uncertainty of {self.name}", uncertainty)
        except NonFiniteError as error:
            raise NonFiniteError(str(error), dump={f"obs/{k}": v for k, v in inputs.items()}) from None
        self._chunk = self._chunk.index_copy(
            0, env_ids, chunk.to(self._device, torch.float32).clamp(-1.0, 1.0)
        )
        self.has_uncertainty = uncertainty is not None
        spread = torch.zeros(expected[:2]) if uncertainty is None else uncertainty
        self._spread = self._spread.index_copy(0, env_ids, spread.to(self._device, torch.float32))

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn whatever the policy raises into an error with its name; those of this package have a message already."""
        try:
            yield
        except ResidualRLError:
            raise
        except Exception as error:
            raise BasePolicyError(f"{self.name} failed: {type(error).__name__}: {error}") from error

    def state_dict(self) -> State:
        """The chunks, the pointers, the histories and the policy's own state."""
        mine = {name: getattr(self, f"_{name}") for name in self._STATE}
        told = {"uncertainty": self.uncertainty, "has_uncertainty": self.has_uncertainty}
        return {**mine, **told, "history": dict(self._history), "policy": self.policy.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        for name in self._STATE:
            setattr(self, f"_{name}", state[name].to(self._device))
        self.uncertainty, self.has_uncertainty = (
            state["uncertainty"].to(self._device),
            state["has_uncertainty"],
        )
        self._history = {name: value.to(self._device) for name, value in state["history"].items()}
        policy_state = state["policy"]
        with self._named_errors():
            self.policy.load_state_dict(policy_state)

    _STATE = ("chunk", "spread", "pointer", "begins")


def make_base_policy(
    base_policy_id: str, cfg: Any, env: VecEnv, name: str | None = None
) -> BasePolicyExecutor:
    """A fresh base policy for `env`, in its executor. `cfg` None means its defaults; `name` is what errors call it."""
    spec = BASE_POLICIES.get(base_policy_id)
    name = name or f"base policy {base_policy_id!r}"
    try:
        policy = load(spec.make)(spec.default_config() if cfg is None else cfg, env)
    except (ConfigError, CheckpointError) as error:
        raise type(error)(f"{name}: {error}") from error
    return BasePolicyExecutor(policy, env, name)
