"""The executor of base policies: per-env chunks, checks, and errors with the policy's name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from residual_rl.envs.spaces import observed, shape_of
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, CheckpointError, ConfigError, NonFiniteError, ResidualRLError
from residual_rl.registry import BASE_POLICIES, load
from residual_rl.types import ActionChunk, BasePolicy, Obs, State, check_finite


class BasePolicyExecutor:
    """Queries `policy` for action chunks and executes them, separately for each env.

    Args:
        policy: the base policy; each of its `inputs` must be an observation of `env` with the same shape.
        env: the vec_env whose observations the policy receives.
        name: name of the policy in error messages.

    Raises:
        ConfigError: the policy does not fit `env`.
    """

    def __init__(self, policy: BasePolicy, env: VecEnv, name: str = "base policy"):
        # Check that the policy fits the env.
        if not 1 <= policy.num_action_steps <= policy.chunk_size:
            raise ConfigError(
                f"{name}: num_action_steps must be from 1 to chunk_size {policy.chunk_size}, "
                f"not {policy.num_action_steps}"
            )
        spaces = observed(env)
        for key, shape in policy.inputs.items():
            if key not in spaces:
                has = ", ".join(sorted(spaces))
                raise ConfigError(f"{name} needs the observation {key!r} {tuple(shape)}; the env has {has}")
            found = shape_of(env, key)
            if found != tuple(shape):
                raise ConfigError(f"{name} needs {key!r} of shape {tuple(shape)}; the env gives {found}")

        # The current chunk of each env, and the position in it.
        self.policy = policy
        self.name = name
        self._num_envs = env.num_envs
        self._device = env.device
        self._action_dim = int(env.single_action_space.shape[0])  # type: ignore[index]
        self._all_env_ids = torch.arange(self._num_envs, device=self._device)
        self._chunk = torch.zeros(self._num_envs, policy.chunk_size, self._action_dim, device=self._device)
        self._spread = torch.zeros(self._num_envs, policy.chunk_size, device=self._device)
        self._pointer = torch.full((self._num_envs,), policy.num_action_steps, device=self._device)
        self.uncertainty = torch.zeros(self._num_envs, device=self._device)
        """[B]: uncertainty of the last base action; 0 if the policy does not predict it."""
        self.has_uncertainty = False
        """Whether the last predicted chunk came with an uncertainty."""

        self._elapsed = torch.full((self._num_envs, 1), -1.0, device=self._device)
        # The observation history.
        self._history: Obs = {}
        """The last H observations [B, H, …] of each input, for policies that use more than one."""
        self._begins = torch.ones(self._num_envs, dtype=torch.bool, device=self._device)
        """[B] bool: envs whose next observation is the first of their episode."""

    def reset(self, mask: Tensor) -> None:
        """Drop the chunks and the state of the envs in `mask` [B] bool."""
        self._pointer = self._pointer.masked_fill(mask, self.policy.num_action_steps)
        self._begins = self._begins | mask
        self._elapsed = self._elapsed.masked_fill(mask[:, None], -1.0)
        with self._named_errors():
            self.policy.reset(mask)

    def drop_chunks(self, mask: Tensor) -> None:
        """Query the policy at the next observation of the envs in `mask` [B] bool; its state is kept."""
        self._pointer = self._pointer.masked_fill(mask, self.policy.num_action_steps)

    @property
    def chunk(self) -> Tensor:
        """[B, n, A]: the actions of each env's current chunk that are executed."""
        return self._chunk[:, : self.policy.num_action_steps]

    @property
    def chunk_uncertainty(self) -> Tensor:
        """[B, n]: the uncertainty of each of these actions; 0 if the policy does not predict it."""
        return self._spread[:, : self.policy.num_action_steps]

    @property
    def elapsed_steps(self) -> Tensor:
        """[B, 1]: steps from the start of the episode to the last base action."""
        return self._elapsed

    @property
    def base_chunk(self) -> Tensor:
        """[B, n·A]: the actions that the current chunk executes from now on, the last base action first.

        After the last executed action of the chunk, that action is repeated.
        """
        steps = torch.arange(self.policy.num_action_steps, device=self._device)
        at = (self._pointer[:, None] - 1 + steps).clamp(max=self.policy.num_action_steps - 1)
        return self._chunk.gather(1, at[..., None].expand(-1, -1, self._action_dim)).flatten(1)

    @property
    def chunk_position(self) -> Tensor:
        """[B, 1]: how many of the chunk's n executed actions lie before the last base action, divided by n;
        in [0, 1)."""
        return (self._pointer[:, None] - 1) / self.policy.num_action_steps

    @property
    def chunk_obs(self) -> Obs:
        """`base_chunk` and `chunk_position` by name."""
        return {"base_chunk": self.base_chunk, "chunk_position": self.chunk_position}

    def act(self, obs: Obs, mask: Tensor | None = None) -> Tensor:
        """The base action [B, A] in [-1, 1] for `obs`, valid in the envs of `mask` [B] bool (default: all).

        Call it once per observation, since each call advances the position in the chunk.
        """
        if mask is None or mask.all():
            return self.act_rows(obs, self._all_env_ids)
        env_ids = mask.nonzero().flatten()
        action = torch.zeros(self._num_envs, self._action_dim, device=self._device)
        if len(env_ids):
            rows = {name: obs[name][env_ids] for name in self.policy.inputs}
            action[env_ids] = self.act_rows(rows, env_ids)
        return action

    @torch.no_grad()
    def act_rows(self, obs: Obs, env_ids: Tensor) -> Tensor:
        """The base action [b, A] of the envs `env_ids` [b] (distinct, int64); `obs` has only their rows.

        Call it once per observation, since each call advances the position in the chunk.
        """
        self._elapsed = self._elapsed.index_copy(0, env_ids, self._elapsed[env_ids] + 1.0)
        inputs = {name: obs[name] for name in self.policy.inputs}
        if self.policy.num_obs_steps > 1:
            inputs = self._update_history(inputs, env_ids)
        pointer = self._pointer[env_ids]
        finished = pointer >= self.policy.num_action_steps
        if finished.all():
            self._query(inputs, env_ids)
            pointer = torch.zeros_like(pointer)
        elif finished.any():
            rows = finished.nonzero().flatten()
            self._query({name: value[rows] for name, value in inputs.items()}, env_ids[rows])
            pointer = pointer.masked_fill(finished, 0)
        self._pointer = self._pointer.index_copy(0, env_ids, pointer + 1)
        self.uncertainty = self.uncertainty.index_copy(0, env_ids, self._spread[env_ids, pointer])
        return self._chunk[env_ids, pointer]

    def _update_history(self, inputs: Obs, env_ids: Tensor) -> Obs:
        """Append `inputs` [b, …] to the histories of `env_ids`, and return these [b, H, …], oldest first.

        At the start of an episode, the history is padded with the episode's first observation.
        """
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

    def _query(self, inputs: Obs, env_ids: Tensor) -> None:
        """Predict a new chunk for the envs `env_ids` [b], and store it clipped to the action space."""
        # Query the policy.
        with self._named_errors():
            prediction = self.policy.predict_action_chunk(inputs, env_ids)
        chunk, uncertainty = prediction, None
        if isinstance(prediction, ActionChunk):
            chunk, uncertainty = prediction.actions, prediction.uncertainty

        # Check shapes and values.
        expected = (len(env_ids), self.policy.chunk_size, self._action_dim)
        if not isinstance(chunk, Tensor) or tuple(chunk.shape) != expected:
            got = tuple(chunk.shape) if isinstance(chunk, Tensor) else type(chunk).__name__
            raise BasePolicyError(
                f"{self.name} gave {got}; expected a tensor of shape {expected} (envs, chunk_size, action)"
            )
        if uncertainty is not None and tuple(uncertainty.shape) != expected[:2]:
            raise BasePolicyError(
                f"{self.name} gave an uncertainty of shape {tuple(uncertainty.shape)}; "
                f"expected {expected[:2]} (envs, chunk_size)"
            )
        try:
            check_finite(f"the base action of {self.name}", chunk)
            if uncertainty is not None:
                check_finite(f"the uncertainty of {self.name}", uncertainty)
        except NonFiniteError as error:
            raise NonFiniteError(str(error), dump={f"obs/{k}": v for k, v in inputs.items()}) from None

        # Store the chunk and its uncertainty.
        actions = chunk.to(self._device, torch.float32).clamp(-1.0, 1.0)
        self._chunk = self._chunk.index_copy(0, env_ids, actions)
        self.has_uncertainty = uncertainty is not None
        spread = torch.zeros(expected[:2]) if uncertainty is None else uncertainty
        self._spread = self._spread.index_copy(0, env_ids, spread.to(self._device, torch.float32))

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn exceptions of the policy into errors with its name; those of this package are passed on."""
        try:
            yield
        except ResidualRLError:
            raise
        except Exception as error:
            raise BasePolicyError(f"{self.name} failed: {type(error).__name__}: {error}") from error

    def snapshot(self, env_ids: Tensor) -> Obs:
        """Chunks, positions and histories of the envs `env_ids` [n], [n, …] each by name, without the state
        of the policy itself."""
        rows = {name: getattr(self, f"_{name}")[env_ids] for name in self._STATE}
        history = {f"history/{name}": value[env_ids] for name, value in self._history.items()}
        return {**rows, **history, "uncertainty": self.uncertainty[env_ids]}

    def restore(self, env_ids: Tensor, snapshot: Obs) -> None:
        """Restore a `snapshot` [n, …] in the envs `env_ids` [n], after `reset`: the policy's own state, such
        as a phase, is that of the start of an episode."""
        for name in self._STATE:
            setattr(self, f"_{name}", getattr(self, f"_{name}").index_copy(0, env_ids, snapshot[name]))
        for name, value in self._history.items():
            self._history[name] = value.index_copy(0, env_ids, snapshot[f"history/{name}"])
        self.uncertainty = self.uncertainty.index_copy(0, env_ids, snapshot["uncertainty"])

    def state_dict(self) -> State:
        """The chunks, the positions in them, the histories and the policy's own state."""
        return {
            **{name: getattr(self, f"_{name}") for name in self._STATE},
            "uncertainty": self.uncertainty,
            "has_uncertainty": self.has_uncertainty,
            "history": dict(self._history),
            "policy": self.policy.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a state returned by `state_dict`."""
        for name in self._STATE:
            setattr(self, f"_{name}", state[name].to(self._device))
        self.uncertainty = state["uncertainty"].to(self._device)
        self.has_uncertainty = state["has_uncertainty"]
        self._history = {name: value.to(self._device) for name, value in state["history"].items()}
        policy_state = state["policy"]
        with self._named_errors():
            self.policy.load_state_dict(policy_state)

    _STATE = ("chunk", "spread", "pointer", "begins", "elapsed")


def make_base_policy(
    base_policy_id: str, cfg: Any, env: VecEnv, name: str | None = None
) -> BasePolicyExecutor:
    """Construct a base policy for `env`, with its executor.

    Args:
        base_policy_id: id of a registered base policy.
        cfg: its settings; None means the defaults.
        env: the vec_env that it acts in.
        name: name of the policy in error messages; default: its id.
    """
    spec = BASE_POLICIES.get(base_policy_id)
    name = name or f"base policy {base_policy_id!r}"
    try:
        policy = load(spec.make)(spec.default_config() if cfg is None else cfg, env)
    except (ConfigError, CheckpointError) as error:
        raise type(error)(f"{name}: {error}") from error
    return BasePolicyExecutor(policy, env, name)
