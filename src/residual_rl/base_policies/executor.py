"""The one executor of base policies: chunks per world, checks, and errors with a name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, ConfigError, NonFiniteError, ResidualRLError
from residual_rl.types import BasePolicy, Obs, State, check_finite


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
            raise ConfigError(f"{name}: num_action_steps must be from 1 to chunk_size {policy.chunk_size}, not {policy.num_action_steps}")
        observed = {key: tuple(space.shape or ()) for key, space in env.single_observation_space.spaces.items()}  # type: ignore[attr-defined]
        for key, shape in policy.inputs.items():
            if key not in observed:
                raise ConfigError(f"{name} needs the observation {key!r} {tuple(shape)}; the env has {', '.join(sorted(observed))}")
            if observed[key] != tuple(shape):
                raise ConfigError(f"{name} needs {key!r} of shape {tuple(shape)}; the env gives {observed[key]}")
        self._everyone = torch.arange(self._num_envs, device=self._device)
        self._chunk = torch.zeros(self._num_envs, policy.chunk_size, self._action_dim, device=self._device)
        self._pointer = torch.full((self._num_envs,), policy.num_action_steps, device=self._device)

    def reset(self, mask: Tensor) -> None:
        """Drop the chunks and the state of the worlds in `mask` [B] bool."""
        self._pointer = self._pointer.masked_fill(mask, self.policy.num_action_steps)
        with self._named_errors():
            self.policy.reset(mask)

    @torch.no_grad()
    def act(self, obs: Obs, mask: Tensor | None = None) -> Tensor:
        """The base action [B, A] in [-1, 1] for `obs`, valid in the worlds of `mask` [B] bool. Call it once per observation."""
        spent = self._pointer >= self.policy.num_action_steps
        if mask is not None:
            spent = spent & mask
        if spent.all():
            self._chunk = self._plan(obs, self._everyone)
            self._pointer = torch.zeros_like(self._pointer)
        elif spent.any():
            worlds = spent.nonzero().flatten()
            self._chunk = self._chunk.index_copy(0, worlds, self._plan({k: v[worlds] for k, v in obs.items()}, worlds))
            self._pointer = self._pointer.masked_fill(spent, 0)
        at = self._pointer.clamp(max=self.policy.chunk_size - 1)
        action = self._chunk[self._everyone, at]
        self._pointer = self._pointer + (1 if mask is None else mask.long())
        return action

    def _plan(self, obs: Obs, worlds: Tensor) -> Tensor:
        """The chunk [b, K, A] for the `worlds` [b], clipped to the action space: what is stored is what can be executed."""
        with self._named_errors():
            chunk = self.policy.plan({key: obs[key] for key in self.policy.inputs}, worlds)
        expected = (len(worlds), self.policy.chunk_size, self._action_dim)
        if not isinstance(chunk, Tensor) or tuple(chunk.shape) != expected:
            got = tuple(chunk.shape) if isinstance(chunk, Tensor) else type(chunk).__name__
            raise BasePolicyError(f"{self.name} gave {got}; expected a tensor of shape {expected} (worlds, chunk_size, action)")
        try:
            check_finite(f"the base action of {self.name}", chunk)
        except NonFiniteError as error:
            raise NonFiniteError(str(error), dump={f"obs/{k}": v for k, v in obs.items()}) from None
        return chunk.to(self._device, torch.float32).clamp(-1.0, 1.0)

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
        """The chunks, the pointers and the policy's own state."""
        return {"chunk": self._chunk, "pointer": self._pointer, "policy": self.policy.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self._chunk, self._pointer, policy_state = state["chunk"].to(self._device), state["pointer"].to(self._device), state["policy"]
        with self._named_errors():
            self.policy.load_state_dict(policy_state)
