"""Residuals for any Gymnasium env: the action is the residual, and the base action is observed.

    env = ResidualWrapper(gymnasium.make("Pendulum-v1"), my_policy, residual_scale=0.3)

Any library can train the residual then. The wrapped env executes
`clip(base_action + residual_scale · residual_action)` in its normalised action space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.spaces import flatten_space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from residual_rl.base_policies.callables import CallablePolicy, row
from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.composition import compose
from residual_rl.envs.gymnasium.action_range import ActionRange
from residual_rl.envs.gymnasium.observations import Observations
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, ConfigError, UnknownNameError
from residual_rl.registry import BASE_POLICIES
from residual_rl.types import BasePolicy, Obs, check_finite

BasePolicyLike = BasePolicy | str | Callable[..., Any]
"""A base policy of this package, its id, or a callable `policy(obs) -> action`."""
_MAX_SCALE = 2.0
"""With it, the residual can outweigh any base action."""


class ResidualWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A Gymnasium env whose action is the residual on a base policy.

    The action space is `Box(-1, 1)`: the residual action. The env executes
    `clip(base_action + residual_scale · residual_action)` in its normalised action space, in which its own
    bounds are -1 and 1. With a residual of zero this is the base action, bit for bit.

    The base action [A], normalised, is part of the observation. It is appended to an observation that is a
    vector, and is the entry `base_action` of a `Dict`. Other observations, such as images, become a `Dict` of
    `observation` and `base_action`. With `flatten=True`, the observation is always one vector, with
    `flatten=False` always a `Dict`. Vectors are float32.

    The `info` of `step` has the `base_action`, the `residual_action` and the executed `action` of this step,
    all normalised. `residual_scale` is an attribute that may be changed between steps.

    The base policy is queried once for each observation, including the last one of an episode, and is reset
    when an episode starts. A callable receives the wrapped env's observation and returns an action in the
    env's own units:

    - `policy(obs) -> action`, and, if it has state, `policy.reset()`, which is called when an episode starts;
    - a class of such callables without arguments, which is instantiated for this wrapper;
    - with `batched=True`, a callable for observations [1, …], see `ResidualVectorWrapper`.

    A `BasePolicy` of this package reads named observations instead (`state` for a vector, or the names of a
    `Dict`) and returns chunks in [-1, 1]. An id, e.g. `"model"`, makes a registered one with the settings
    `base_settings`.

    Args:
        env: an env with a bounded `Box` of actions.
        base_policy: the base policy. Do not share one that has state between envs.
        residual_scale: bound of the residual, as a share of half the action range, from 0 to 2.
        flatten: whether the observation is a vector; None: only if that of `env` is.
        batched: whether a callable takes a batch of observations.
        base_settings: settings of a base policy that is given by its id.

    Raises:
        ConfigError: an argument is invalid, or the spaces of `env` are not supported.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        base_policy: BasePolicyLike,
        residual_scale: float,
        flatten: bool | None = None,
        batched: bool = False,
        base_settings: Mapping[str, Any] | None = None,
    ):
        if isinstance(env, VectorEnv) or env.has_wrapper_attr("single_observation_space"):
            raise ConfigError(
                "ResidualWrapper needs an env that is not batched: use ResidualVectorWrapper, for ManiSkill on"
                " its ManiSkillVectorEnv, or wrap an env of ManiSkill in its CPUGymWrapper"
            )
        super().__init__(env)
        spaces_of_one = (env.observation_space, env.action_space)
        self._residual = _Residual(env, spaces_of_one, 1, base_policy, residual_scale, batched, base_settings)
        self._layout = _Layout(env.observation_space, self._residual.action_space, flatten)
        self.observation_space = self._layout.space
        self.action_space = self._residual.action_space

    @property
    def residual_scale(self) -> float:
        """The bound of the residual; may be set between steps."""
        return self._residual.scale

    @residual_scale.setter
    def residual_scale(self, scale: float) -> None:
        self._residual.scale = _checked_scale(scale)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._residual.reset(_batch_of_one(obs))
        return self._observe(obs), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        executed, entries = self._residual.compose(_batch_of_one(action))
        obs, reward, terminated, truncated, info = self.env.step(executed[0])
        self._residual.query(_batch_of_one(obs))
        return self._observe(obs), reward, terminated, truncated, {**info, **row(entries, 0)}

    def _observe(self, obs: Any) -> Any:
        return self._layout.join(obs, self._residual.observed(self._residual.base_actions)[0], ())


class ResidualVectorWrapper(gymnasium.vector.VectorWrapper[Any, Any, Any, Any, Any]):
    """A Gymnasium vector env whose actions are residuals on a base policy.

    Spaces, observations and infos are those of `ResidualWrapper`, with the batch in front. The arrays are
    NumPy arrays or torch tensors like the observations of `env`, so that it also wraps ManiSkill's
    `ManiSkillVectorEnv` and the vec_envs of this package, on any device.

    All autoreset modes are supported. With same-step autoreset, `final_obs` in `info` (ManiSkill:
    `final_observation`) includes the base action for the final observation. With next-step autoreset, the
    action of the step that resets an env is ignored, and the masks `_action`, `_base_action` and
    `_residual_action` in `info` are false there. Without autoreset, reset the envs whose episode ended with
    `options={"reset_mask": mask}` (ManiSkill: `env_idx`).

    A callable gets the observations [b, …] of one or more envs and returns their actions [b, A]. If it has
    state, `policy.reset(mask)` receives the envs [B] bool that start an episode, and it is called as
    `policy(obs, env_ids)` with the indices [b] of the envs. With `batched=False`, it is called for each env,
    as by `ResidualWrapper`.

    Args:
        env: a vector env with a bounded `Box` of actions.
        base_policy: see `ResidualWrapper`.
        residual_scale: see `ResidualWrapper`.
        flatten: see `ResidualWrapper`.
        batched: see `ResidualWrapper`.
        base_settings: see `ResidualWrapper`.

    Raises:
        ConfigError: an argument is invalid, or the spaces or the autoreset mode of `env` are not supported.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        base_policy: BasePolicyLike,
        residual_scale: float,
        flatten: bool | None = None,
        batched: bool = True,
        base_settings: Mapping[str, Any] | None = None,
    ):
        # Check the env.
        if not isinstance(env, VectorEnv):
            raise ConfigError(
                "ResidualVectorWrapper needs a vector env: use ResidualWrapper for a single env, and wrap a"
                " batched env of ManiSkill in its ManiSkillVectorEnv"
            )
        if env.metadata.get("autoreset_mode") is None:
            raise ConfigError(
                "the vector env does not declare when it resets its envs: set metadata['autoreset_mode'] to a"
                " gymnasium.vector.AutoresetMode"
            )
        super().__init__(env)
        self._mode = AutoresetMode(env.metadata["autoreset_mode"])

        # The residual, and the spaces with it.
        spaces_of_one = (env.single_observation_space, env.single_action_space)
        self._residual = _Residual(
            env, spaces_of_one, env.num_envs, base_policy, residual_scale, batched, base_settings
        )
        if self._mode != AutoresetMode.NEXT_STEP:
            self._residual.check_queries_of_some()
        self._layout = _Layout(env.single_observation_space, self._residual.action_space, flatten)
        self.single_observation_space = self._layout.space
        self.single_action_space = self._residual.action_space
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self._begins = torch.zeros(env.num_envs, dtype=torch.bool, device=self._residual.device)
        """[B]: the envs that the next step resets, with next-step autoreset."""

    @property
    def residual_scale(self) -> float:
        """The bound of the residual; may be set between steps."""
        return self._residual.scale

    @residual_scale.setter
    def residual_scale(self, scale: float) -> None:
        self._residual.scale = _checked_scale(scale)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        mask = self._reset_mask(options or {})  # Gymnasium's envs remove it from the options
        obs, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._residual.reset(obs, mask)
        self._begins = torch.zeros_like(self._begins) if mask is None else self._begins & ~mask
        return self._observe(obs, self._residual.base_actions), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        # Execute the composed actions.
        executed, entries = self._residual.compose(actions)
        obs, reward, terminated, truncated, info = self.env.step(executed)
        stepped = self._residual.like_obs(~self._begins)
        entries |= {f"_{name}": stepped for name in entries}
        info = {**info, **entries}

        # Query the base policy for final observations first, reset it, then query it for the new ones.
        begins, final_base = self._begins, None
        if self._mode == AutoresetMode.SAME_STEP:
            begins, final_base = self._query_final(info)
        self._residual.reset_policy(begins)
        self._residual.query(obs)
        if final_base is not None:
            final_base = torch.where(begins[:, None], final_base, self._residual.base_actions)
            self._add_final(info, begins, final_base, entries)
        if self._mode == AutoresetMode.NEXT_STEP:
            self._begins = self._residual.mask(terminated) | self._residual.mask(truncated)
        return self._observe(obs, self._residual.base_actions), reward, terminated, truncated, info

    def _observe(self, obs: Any, base_actions: Tensor) -> Any:
        return self._layout.join(obs, self._residual.observed(base_actions), (self.num_envs,))

    def _query_final(self, info: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The envs [B] bool whose episode ended with this step, and the base actions [B, A] for their final
        observations; None if there are none."""
        name = _final_name(info)
        ended = self._residual.mask(info[f"_{name}"]) if name in info else torch.zeros_like(self._begins)
        if not ended.any():
            return ended, None
        env_ids = ended.nonzero().flatten()
        if _is_list(info[name]):
            rows = _stack([info[name][env_id] for env_id in env_ids.tolist()])
        else:
            rows = _map(lambda value: value[self._residual.like_obs(ended)], info[name])
        self._residual.query(rows, env_ids)
        return ended, self._residual.base_actions

    def _add_final(
        self, info: dict[str, Any], ended: Tensor, base_actions: Tensor, entries: dict[str, Any]
    ) -> None:
        """Add `base_actions` [B, A] to the final observations in `info`, and `entries` to its final infos."""
        name = _final_name(info)
        if _is_list(info[name]):
            observed = self._residual.observed(base_actions)
            final_obs = np.full(self.num_envs, None, dtype=object)
            for i in ended.nonzero().flatten().tolist():
                final_obs[i] = self._layout.join(info[name][i], observed[i], ())
            info[name] = final_obs
        else:
            info[name] = self._observe(info[name], base_actions)
        if isinstance(info.get("final_info"), dict):
            info["final_info"] = {**info["final_info"], **entries}

    def _reset_mask(self, options: Mapping[str, Any]) -> Tensor | None:
        """The envs [B] bool that a reset with `options` resets; None: all."""
        if options.get("reset_mask") is not None:
            return self._residual.mask(options["reset_mask"])
        if options.get("env_idx") is None:
            return None
        mask = torch.zeros_like(self._begins)
        mask[torch.as_tensor(options["env_idx"], device=mask.device)] = True
        return mask


class _Residual:
    """The base actions of B envs and their composition with residual actions.

    Observations and residual actions have the batch in front.
    """

    def __init__(
        self,
        env: Any,
        spaces_of_one: tuple[spaces.Space[Any], spaces.Space[Any]],
        num_envs: int,
        base_policy: BasePolicyLike,
        residual_scale: float,
        batched: bool,
        base_settings: Mapping[str, Any] | None,
    ):
        self.scale = _checked_scale(residual_scale)
        self.device = torch.device(getattr(env, "device", None) or "cpu")
        obs_space, action_space = spaces_of_one
        self._actions = _Actions(action_space, self.device)
        self.action_space = self._actions.space
        """The space of the residual action of one env."""
        self._size = len(self._actions.unit)
        self._all_envs = torch.arange(num_envs, device=self.device)
        self._obs_device: torch.device | None = None
        """Device of the observations; None: they are NumPy arrays."""
        self._base_actions: Tensor | None = None
        self._policy: _NamedPolicy | CallablePolicy
        if isinstance(base_policy, str | BasePolicy):
            view = env if isinstance(env, VecEnv) else _View(obs_space, self._actions, num_envs, self.device)
            self._policy = _NamedPolicy(base_policy, base_settings, view)
            self._name = self._policy.name
            return
        if not callable(base_policy):
            raise ConfigError(
                "base_policy must be a base policy, the id of one, or a callable policy(obs) -> action, not a"
                f" {type(base_policy).__name__}"
            )
        if base_settings is not None:
            raise ConfigError(_ONLY_BY_ID)
        self._name = getattr(base_policy, "__name__", type(base_policy).__name__)
        self._policy = CallablePolicy(base_policy, num_envs, batched, self._name)

    @property
    def base_actions(self) -> Tensor:
        """[B, A] float64: the normalised base actions for the current observations."""
        if self._base_actions is None:
            raise ResetNeeded("there is no episode in progress: call reset() first")
        return self._base_actions

    def check_queries_of_some(self) -> None:
        """Raise `ConfigError` for a policy that can only be queried for all envs at once."""
        if isinstance(self._policy, CallablePolicy) and self._policy.needs_all_envs:
            raise ConfigError(
                f"{self._name} has a reset, so it keeps state, and is queried for some of the envs at a time:"
                " it must take their indices, as policy(obs, env_ids)"
            )

    def reset(self, obs: Any, mask: Tensor | None = None) -> None:
        """Start episodes, with the observations `obs`, in the envs of `mask` [B] bool (None: all)."""
        leaf = _first_leaf(obs)
        self._obs_device = leaf.device if isinstance(leaf, Tensor) else None
        if mask is None or self._base_actions is None:
            shape = (len(self._all_envs), self._size)
            self._base_actions = torch.zeros(shape, dtype=torch.float64, device=self.device)
            mask = torch.ones_like(self._all_envs, dtype=torch.bool)
        self.reset_policy(mask)
        if mask.all():
            self.query(obs)
        else:
            self.query(_map(lambda value: value[self.like_obs(mask)], obs), mask.nonzero().flatten())

    def reset_policy(self, mask: Tensor) -> None:
        """Reset the base policy in the envs of `mask` [B] bool."""
        if mask.any():
            self._policy.reset(self.like_obs(mask))

    def query(self, obs: Any, env_ids: Tensor | None = None) -> None:
        """Query the base policy for the observations `obs` [b, …] of the envs `env_ids` [b] (None: all)."""
        ids = self._all_envs if env_ids is None else env_ids
        found = self._policy(obs, self.like_obs(ids)).to(self.device)
        self._check_shape(tuple(found.shape), len(ids))
        check_finite(f"the base action of {self._name}", found)
        found = found.flatten(1)
        if isinstance(self._policy, CallablePolicy):
            found = self._actions.normalise(found)
        self._base_actions = self.base_actions.index_copy(0, ids, found)

    def _check_shape(self, shape: tuple[int, ...], num_rows: int) -> None:
        """Raise `BasePolicyError` unless `shape` is that of actions for `num_rows` envs."""
        expected = (num_rows, *self.action_space.shape)
        if shape in (expected, (num_rows, self._size)):
            return
        if self._policy.batched:
            raise BasePolicyError(f"{self._name} gave actions of shape {shape}; expected {expected}")
        raise BasePolicyError(
            f"{self._name} gave an action of shape {shape[1:]}; expected {expected[1:]}"
            " (batched=True for a policy of batches)"
        )

    def compose(self, residual_action: Any) -> tuple[Any, dict[str, Any]]:
        """The actions to execute in the env's units, and the entries of `info`, [B, …] like observations."""
        residual = torch.as_tensor(residual_action).detach().to(self.device, torch.float64)
        shape = (len(self._all_envs), *self.action_space.shape)
        if residual.shape != shape:
            raise ConfigError(f"the residual actions must have shape {shape}, not {tuple(residual.shape)}")
        check_finite("the residual action", residual)
        residual = residual.flatten(1).clamp(-1.0, 1.0)
        action = compose(self.base_actions, residual, self.scale)
        named = {"base_action": self.base_actions, "residual_action": residual, "action": action}
        executed = self._actions.in_units(action).reshape(shape)
        return self.like_obs(executed), {name: self.observed(value) for name, value in named.items()}

    def observed(self, actions: Tensor) -> Any:
        """Normalised actions [B, A] as float32 [B, …], like observations."""
        return self.like_obs(actions.float().reshape(len(actions), *self.action_space.shape))

    def like_obs(self, value: Tensor) -> Any:
        """`value` as a NumPy array, or as a tensor on the device of the observations."""
        return value.cpu().numpy() if self._obs_device is None else value.to(self._obs_device)

    def mask(self, value: Any) -> Tensor:
        """`value` [B] as a mask."""
        return torch.as_tensor(value, dtype=torch.bool, device=self.device)


class _Actions:
    """The actions of an env, normalised: its bounds become -1 and 1.

    They are converted in float64, so that a float32 action survives the conversion and its inverse bit for
    bit.
    """

    def __init__(self, space: spaces.Space[Any], device: torch.device):
        try:
            limits = ActionRange(space, "the env")
        except ValueError as error:
            raise ConfigError(str(error)) from error
        assert isinstance(space, spaces.Box)
        self.space = spaces.Box(-1.0, 1.0, space.shape, np.float32)
        """The space of the normalised actions of one env."""
        self.unit = torch.from_numpy(limits.unit).to(device)
        """[A]: the change in the env's units that a change of 1 stands for."""
        self._centre = torch.from_numpy(limits.centre).to(device)
        self._low, self._high = self._centre - self.unit, self._centre + self.unit
        self._dtype = torch.from_numpy(np.zeros(1, space.dtype)).dtype

    def normalise(self, actions: Tensor) -> Tensor:
        """`actions` [b, A] in the env's units as normalised actions."""
        return ((actions - self._centre) / self.unit).clamp(-1.0, 1.0)

    def in_units(self, actions: Tensor) -> Tensor:
        """Normalised `actions` [b, A] in the env's units."""
        found = (self._centre + self.unit * actions).clamp(self._low, self._high)
        return (found if self._dtype.is_floating_point else found.round()).to(self._dtype)


class _Layout:
    """Observations with the base action, as one vector or a `Dict`."""

    def __init__(self, space: spaces.Space[Any], action_space: spaces.Box, flatten: bool | None):
        self._space = space
        is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1
        self._flatten = is_vector if flatten is None else flatten
        self.space: spaces.Space[Any]
        """The space of one env."""
        if self._flatten:
            parts = [_flat_space(space), _flat_space(action_space)]
            low, high = (np.concatenate([getattr(part, end) for part in parts]) for end in ("low", "high"))
            self.space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
            return
        entries = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
        if "base_action" in entries:
            raise ConfigError("the env has an observation base_action already: rename it, or flatten=True")
        self.space = spaces.Dict({**entries, "base_action": action_space})

    def join(self, obs: Any, base_action: Any, lead: tuple[int, ...]) -> Any:
        """`obs` with `base_action`, both with the leading dimensions `lead`: (B,), or () for one env."""
        if not self._flatten:
            entries = obs if isinstance(self._space, spaces.Dict) else {"observation": obs}
            return {**entries, "base_action": base_action}
        leaves = [*_leaves(self._space, obs), base_action]
        if isinstance(base_action, Tensor):
            return torch.cat([leaf.reshape(*lead, -1).float() for leaf in leaves], -1)
        return np.concatenate([np.asarray(leaf, np.float32).reshape(*lead, -1) for leaf in leaves], -1)


class _NamedPolicy:
    """A base policy of this package, which reads named observations."""

    batched = True

    def __init__(self, policy: BasePolicy | str, settings: Mapping[str, Any] | None, view: VecEnv | _View):
        self._view = view
        if isinstance(policy, BasePolicy):
            if settings is not None:
                raise ConfigError(_ONLY_BY_ID)
            self._executor = BasePolicyExecutor(policy, view, f"base policy {type(policy).__name__}")
        else:
            cfg = BASE_POLICIES.get(policy).default_config()
            known = [] if cfg is None else [field.name for field in dataclasses.fields(cfg)]
            for name in settings or {}:
                if name not in known:
                    raise UnknownNameError(f"setting of base policy {policy!r}", name, known)
            self._executor = make_base_policy(policy, dataclasses.replace(cfg, **settings or {}), view)
        self.name = self._executor.name

    def reset(self, mask: Any) -> None:
        """Start a new episode in the envs of `mask` [B] bool."""
        self._executor.reset(torch.as_tensor(mask, device=self._view.device))

    def __call__(self, obs: Any, env_ids: Any) -> Tensor:
        """The normalised base actions [b, A] for `obs` [b, …] of the envs `env_ids` [b]."""
        named = self._view.named(obs) if isinstance(self._view, _View) else obs
        return self._executor.act_rows(named, torch.as_tensor(env_ids, device=self._view.device)).double()


class _View(VecEnv):
    """What a base policy of this package needs to know of an env of another library; it cannot be stepped.

    The names of observations are those of `GymVecEnv`.
    """

    action_unit_name = "env unit"

    def __init__(self, obs_space: spaces.Space[Any], actions: _Actions, num_envs: int, device: torch.device):
        self._observations = Observations(obs_space)
        self.num_envs, self.device = num_envs, device
        self.action_unit = actions.unit.float()
        self.single_action_space = spaces.Box(-1.0, 1.0, self.action_unit.shape, np.float32)
        self.single_observation_space = spaces.Dict(
            {
                name: spaces.Box(0, 255, shape, np.uint8)
                if dtype == "uint8"
                else spaces.Box(-np.inf, np.inf, shape, np.float32)
                for name, (shape, dtype) in self._observations.layout().items()
            }
        )

    def named(self, obs: Any) -> Obs:
        """The named observations [b, …] of `obs`, nested arrays or tensors [b, …]."""
        rows = [self._observations(row(_arrays(obs), i)) for i in range(len(_first_leaf(obs)))]
        return {
            name: torch.from_numpy(np.stack([one[name] for one in rows])).to(self.device) for name in rows[0]
        }


_ONLY_BY_ID = "base_settings are for a base policy that is given by its id"


def _checked_scale(scale: float) -> float:
    if not 0.0 <= scale <= _MAX_SCALE:
        raise ConfigError(f"residual_scale must be from 0 to {_MAX_SCALE:g}, not {scale}")
    return float(scale)


# --- nested observations ------------------------------------------------------------------------------------


def _map(function: Callable[[Any], Any], obs: Any) -> Any:
    """Apply `function` to the arrays in nested dicts and tuples."""
    if isinstance(obs, dict):
        return {name: _map(function, value) for name, value in obs.items()}
    return tuple(_map(function, value) for value in obs) if isinstance(obs, tuple) else function(obs)


def _batch_of_one(obs: Any) -> Any:
    return _map(lambda value: (value if isinstance(value, Tensor) else np.asarray(value))[None], obs)


def _arrays(obs: Any) -> Any:
    return _map(lambda value: value.cpu().numpy() if isinstance(value, Tensor) else value, obs)


def _first_leaf(obs: Any) -> Any:
    while isinstance(obs, dict | tuple):
        obs = next(iter(obs.values())) if isinstance(obs, dict) else obs[0]
    return obs


def _stack(rows: Sequence[Any]) -> Any:
    """Observations of single envs as a batch."""
    first = rows[0]
    if isinstance(first, dict):
        return {name: _stack([one[name] for one in rows]) for name in first}
    if isinstance(first, tuple):
        return tuple(_stack(parts) for parts in zip(*rows, strict=True))
    return torch.stack(list(rows)) if isinstance(first, Tensor) else np.stack(rows)


def _is_list(batch: Any) -> bool:
    """Whether final observations are an array of one object for each env, as in Gymnasium's vector envs."""
    return isinstance(batch, np.ndarray) and batch.dtype == object


def _final_name(info: Mapping[str, Any]) -> str:
    return "final_obs" if "final_obs" in info else "final_observation"


def _flat_space(space: spaces.Space[Any]) -> spaces.Box:
    """The space of the vector that `_leaves` of an observation become side by side."""
    for leaf in _leaves(space, space):
        if not isinstance(leaf, spaces.Box | spaces.MultiBinary):
            raise ConfigError(
                f"flatten cannot convert {leaf}: use gymnasium.wrappers.FlattenObservation on the env first"
            )
    flat = flatten_space(space)
    assert isinstance(flat, spaces.Box)
    return flat


def _leaves(space: spaces.Space[Any], obs: Any) -> list[Any]:
    """The arrays in `obs`, in the order of `space`."""
    if isinstance(space, spaces.Dict):
        return [leaf for name, inner in space.spaces.items() for leaf in _leaves(inner, obs[name])]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, inner in enumerate(space.spaces) for leaf in _leaves(inner, obs[i])]
    return [obs]
