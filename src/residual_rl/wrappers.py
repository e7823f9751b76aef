"""Residuals for any Gymnasium env: the action is the residual, and the base action is observed.

    env = ResidualWrapper(gymnasium.make("Pendulum-v1"), my_policy, residual_scale=0.3)

Any library can train the residual then. The wrapped env executes
`clip(base_action + residual_scale · residual_action)` in its normalised action space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from torch import Tensor

from residual_rl.base_policies.base_actions import BaseActions, BasePolicyLike
from residual_rl.composition import compose
from residual_rl.envs.gymnasium.base_action_obs import BaseActionObs
from residual_rl.envs.gymnasium.nested import batch_of_one, map_arrays, row, stack
from residual_rl.errors import ConfigError
from residual_rl.types import check_finite

_MAX_SCALE = 2.0
"""With it, the residual can outweigh any base action."""


class _HasResidualScale:
    """The attribute `residual_scale` of both wrappers."""

    _scale: float

    @property
    def residual_scale(self) -> float:
        """The bound of the residual; may be set between steps."""
        return self._scale

    @residual_scale.setter
    def residual_scale(self, scale: float) -> None:
        if not 0.0 <= scale <= _MAX_SCALE:
            raise ConfigError(f"residual_scale must be from 0 to {_MAX_SCALE:g}, not {scale}")
        self._scale = float(scale)


class ResidualWrapper(_HasResidualScale, gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
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
        if _is_batched(env):
            raise ConfigError(
                "ResidualWrapper needs an env that is not batched: use ResidualVectorWrapper, on ManiSkill's"
                " ManiSkillVectorEnv for its envs, or wrap an env of ManiSkill in its CPUGymWrapper"
            )
        RecordConstructorArgs.__init__(  # so that `env.spec` can make it again
            self,
            base_policy=base_policy,
            residual_scale=residual_scale,
            flatten=flatten,
            batched=batched,
            base_settings=base_settings,
            _disable_deepcopy=True,
        )
        gymnasium.Wrapper.__init__(self, env)
        self.residual_scale = residual_scale
        self._base = BaseActions(
            env, env.observation_space, env.action_space, 1, base_policy, batched, base_settings
        )
        self._layout = BaseActionObs(env.observation_space, self._base.actions.space, flatten)
        self.observation_space = self._layout.space
        self.action_space = self._base.actions.space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._base.reset(batch_of_one(obs))
        return self._observe(obs), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        executed, entries = _compose(self._base, batch_of_one(action), self._scale)
        obs, reward, terminated, truncated, info = self.env.step(executed[0])
        self._base.query(batch_of_one(obs))
        return self._observe(obs), reward, terminated, truncated, {**info, **row(entries, 0)}

    def _observe(self, obs: Any) -> Any:
        return self._layout.join(obs, self._base.observed(self._base.current)[0], ())


class ResidualVectorWrapper(_HasResidualScale, VectorWrapper[Any, Any, Any, Any, Any]):
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
        self.residual_scale = residual_scale
        self._base = BaseActions(
            env,
            env.single_observation_space,
            env.single_action_space,
            env.num_envs,
            base_policy,
            batched,
            base_settings,
        )
        if self._mode != AutoresetMode.NEXT_STEP:
            self._base.check_queries_of_some()
        self._layout = BaseActionObs(env.single_observation_space, self._base.actions.space, flatten)
        self.single_observation_space = self._layout.space
        self.single_action_space = self._base.actions.space
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self._begins = torch.zeros(env.num_envs, dtype=torch.bool, device=self._base.device)
        """[B]: the envs that the next step resets, with next-step autoreset."""

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        mask = self._reset_mask(options or {})  # Gymnasium's envs remove it from the options
        if mask is not None:
            self._base.check_queries_of_some()
        obs, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._base.reset(obs, mask)
        self._begins = torch.zeros_like(self._begins) if mask is None else self._begins & ~mask
        return self._observe(obs, self._base.current), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        # Execute the composed actions.
        executed, entries = _compose(self._base, actions, self._scale)
        obs, reward, terminated, truncated, info = self.env.step(executed)
        stepped = self._base.like_obs(~self._begins)
        entries |= {f"_{name}": stepped for name in entries}
        info = {**info, **entries}

        # Query the base policy for final observations first, reset it, then query it for the new ones.
        begins, final_base = self._begins, None
        if self._mode == AutoresetMode.SAME_STEP:
            begins, final_base = self._query_final(info)
        self._base.reset_policy(begins)
        self._base.query(obs)
        if final_base is not None:
            final_base = torch.where(begins[:, None], final_base, self._base.current)
            self._add_final(info, begins, final_base, entries)
        if self._mode == AutoresetMode.NEXT_STEP:
            self._begins = self._base.mask(terminated) | self._base.mask(truncated)
        return self._observe(obs, self._base.current), reward, terminated, truncated, info

    def _observe(self, obs: Any, base_actions: Tensor) -> Any:
        return self._layout.join(obs, self._base.observed(base_actions), (self.num_envs,))

    def _query_final(self, info: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The envs [B] bool whose episode ended with this step, and the base actions [B, A] for their final
        observations; None if there are none."""
        name = _final_name(info)
        ended = self._base.mask(info[f"_{name}"]) if name in info else torch.zeros_like(self._begins)
        if not ended.any():
            return ended, None
        env_ids = ended.nonzero().flatten()
        if _is_list(info[name]):
            rows = stack([info[name][env_id] for env_id in env_ids.tolist()])
        else:
            rows = map_arrays(lambda value: value[self._base.like_obs(ended)], info[name])
        self._base.query(rows, env_ids)
        return ended, self._base.current

    def _add_final(
        self, info: dict[str, Any], ended: Tensor, base_actions: Tensor, entries: dict[str, Any]
    ) -> None:
        """Add `base_actions` [B, A] to the final observations in `info`, and `entries` to its final infos."""
        name = _final_name(info)
        if _is_list(info[name]):
            observed = self._base.observed(base_actions)
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
            return self._base.mask(options["reset_mask"])
        if options.get("env_idx") is None:
            return None
        mask = torch.zeros_like(self._begins)
        mask[torch.as_tensor(options["env_idx"], device=mask.device)] = True
        return mask


def _compose(base: BaseActions, residual_action: Any, scale: float) -> tuple[Any, dict[str, Any]]:
    """The actions [B, …] to execute in the env's units, and the entries of `info`, like observations."""
    # Check the residual actions.
    residual = torch.as_tensor(residual_action).detach().to(base.device, torch.float64)
    if residual.shape != base.shape:
        raise ConfigError(f"the residual actions must have shape {base.shape}, not {tuple(residual.shape)}")
    check_finite("the residual action", residual)

    # Compose and convert.
    residual = residual.flatten(1).clamp(-1.0, 1.0)
    action = compose(base.current, residual, scale)
    entries = {"base_action": base.current, "residual_action": residual, "action": action}
    executed = base.actions.in_units(action).reshape(base.shape)
    return base.like_obs(executed), {name: base.observed(value) for name, value in entries.items()}


def _is_batched(env: Any) -> bool:
    """Whether `env` is a vector env, or a batched env of ManiSkill."""
    if isinstance(env, VectorEnv):
        return True
    name = "single_observation_space"
    return env.has_wrapper_attr(name) and bool(env.observation_space != env.get_wrapper_attr(name))


def _final_name(info: Mapping[str, Any]) -> str:
    """The name of final observations in `info`: Gymnasium's, or ManiSkill's."""
    return "final_obs" if "final_obs" in info else "final_observation"


def _is_list(batch: Any) -> bool:
    """Whether final observations are an array of one object for each env, as in Gymnasium's vector envs."""
    return isinstance(batch, np.ndarray) and batch.dtype == object
