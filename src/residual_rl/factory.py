"""Construct envs, base policies and learners from their settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from gymnasium import spaces

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.chunk_residual_env import ChunkResidualEnv
from residual_rl.composition import make_composition
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.envs.spaces import CHUNK_OBS, EXPERT_ACTION
from residual_rl.envs.start_states import StartStates
from residual_rl.envs.task_env import limit_targets
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.registry import BASE_POLICIES, LEARNERS, TASKS, load
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import ChoosesStartStates, Learner


def make_vec_env(
    task: str, num_envs: int = 32, *, num_threads: int = 0, device: str = "cpu", **settings: Any
) -> VecEnv:
    """Construct the vec_env of a registered task, without a base policy.

    Args:
        task: id of the task.
        num_envs: B.
        num_threads: simulator threads; 0 means OMP_NUM_THREADS, or else one per CPU core.
        device: device of the tensors.
        settings: fields of the task's settings that differ from their defaults.

    Raises:
        UnknownNameError: unknown task.
        ConfigError: unknown or invalid setting.
    """
    spec = TASKS.get(task)
    try:
        cfg = load(spec.config)(**{**spec.config_overrides, **settings})
    except TypeError as error:
        raise ConfigError(f"task {task!r}: {error}") from None
    return load(spec.make)(cfg, num_envs, num_threads, device)


def make_residual_env(
    cfg: TrainCfg, num_envs: int, *, base_policy_id: str | None = None, chunk_obs: bool | None = None
) -> ResidualEnv:
    """Construct the env of a run with its base policy and composition.

    With a `base_policy_id` other than the run's, that base policy is used with its default settings, one step
    at a time and with a constant residual scale. `chunk_obs` (see `ResidualEnv`) is by default what the
    learner needs.
    """
    env = load(TASKS.get(cfg.task_id).make)(cfg.task, num_envs, cfg.run.num_threads, cfg.run.sim_device)
    if cfg.safety.safety:
        limit_targets(env, cfg.safety)
    return make_residual_env_on(env, cfg, base_policy_id=base_policy_id, chunk_obs=chunk_obs)


def make_residual_env_on(
    env: VecEnv, cfg: TrainCfg, *, base_policy_id: str | None = None, chunk_obs: bool | None = None
) -> ResidualEnv:
    """Construct base policy and composition on an env of the run's task; see `make_residual_env`."""
    residual = cfg.residual
    if base_policy_id is None or base_policy_id == cfg.base_policy_id:
        base_policy = make_base_policy(cfg.base_policy_id, cfg.base, env)
        cls = ChunkResidualEnv if residual.chunk == "whole" else ResidualEnv
        composition = make_composition(residual, residual.residual_scale, env.residual_unit)
        if chunk_obs is None:
            chunk_obs = _reads_chunk(cfg, base_policy)
        return cls(env, base_policy, composition, residual.residual_penalty, chunk_obs)
    return ResidualEnv(
        env, make_base_policy(base_policy_id, None, env), residual.residual_scale, residual.residual_penalty
    )


def make_training_env(cfg: TrainCfg) -> ResidualEnv:
    """Construct the env in which the residual learns: that of `make_residual_env`, whose episodes
    `train_episode_steps` may shorten.

    Raises `ConfigError` if the task has no limit to change.
    """
    limit = cfg.run.train_episode_steps
    if limit is not None:
        if not hasattr(cfg.task, "max_episode_steps"):
            raise ConfigError(f"train_episode_steps: task {cfg.task_id!r} has no max_episode_steps to lower")
        steps = cfg.task.max_episode_steps or limit
        cfg = replace_fields(cfg, {"task.max_episode_steps": min(limit, steps)})
    return make_residual_env(cfg, cfg.run.num_envs)


def _reads_chunk(cfg: TrainCfg, base_policy: BasePolicyExecutor) -> bool:
    """Whether the learner reads `CHUNK_OBS`: because its settings name them, or by default, see
    `with_obs_keys`."""
    names = [getattr(cfg.learner, setting, None) or () for setting in ("obs_keys", "critic_obs_keys")]
    if not set(CHUNK_OBS).isdisjoint([*names[0], *names[1]]):
        return True
    chunked = base_policy.policy.num_action_steps > 1 and cfg.residual.chunk == "step"
    return chunked and BASE_POLICIES.get(cfg.base_policy_id).learned and _default_obs_keys(cfg) is not None


def _default_obs_keys(cfg: TrainCfg) -> Callable[[spaces.Dict], tuple[str, ...]] | None:
    """The function that gives the learner's observations if its settings do not; None if it has none."""
    if getattr(cfg.learner, "obs_keys", ()) is not None:
        return None
    return getattr(load(LEARNERS.get(cfg.learner_id).make), "default_obs_keys", None)


def with_obs_keys(cfg: TrainCfg, env: ResidualEnv) -> TrainCfg:
    """`cfg` with the names of the observations that the learner reads in `env`, if its `obs_keys` are None.

    They are those of its `default_obs_keys`, see `LearnerSpec.make`. Over a learned base, the vectors that it
    reads itself, `joint_target`, `base_chunk` and `chunk_position` are added where `env` observes them: what
    such a base does next depends on its own observations and on the chunk that it is executing.
    """
    default_obs_keys = _default_obs_keys(cfg)
    if default_obs_keys is None:
        return cfg
    keys = default_obs_keys(env.observation_space)
    if BASE_POLICIES.get(cfg.base_policy_id).learned:
        known = env.observation_space.spaces
        inputs = env.base_policy.policy.inputs
        own = [name for name, shape in inputs.items() if len(shape) == 1 and name != EXPERT_ACTION]
        more = [name for name in (*own, "joint_target", *CHUNK_OBS) if name in known]
        keys = tuple(dict.fromkeys([*keys, *more]))
    return dataclasses.replace(cfg, learner=dataclasses.replace(cfg.learner, obs_keys=keys))


def task_settings(cfg: TrainCfg, env: VecEnv) -> dict[str, Any]:
    """All settings of the task as plain values. A control mode of None is replaced by the one that the env
    uses."""
    settings: dict[str, Any] = cfg.to_dict()["task"]
    if settings.get("control_mode", "") is None:
        settings["control_mode"] = env.control_mode
    return settings


def make_learner(cfg: TrainCfg, env: ResidualEnv) -> Learner:
    """Construct the learner of a run for the spaces of `env`, on the learner's device. If it chooses start
    states and `env` can be put back into them, `env` keeps them from now on."""
    cfg = with_obs_keys(cfg, env)
    make = load(LEARNERS.get(cfg.learner_id).make)
    device = usable_device(cfg.run.device)
    learner: Learner = make(
        cfg.learner, env.observation_space, env.action_dim, env.num_envs, device, cfg.run.seed
    )
    if isinstance(learner, ChoosesStartStates) and env.can_restore:
        env.start_states = StartStates(learner.restart_share, cfg.run.seed)
    return learner


def usable_device(name: str) -> torch.device:
    """The torch device `name`. Raises `ConfigError` if torch cannot compute on it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        reason = str(error).split("\n")[0]
        raise ConfigError(
            f"device {name!r} cannot be used on this machine: {reason}; choose another --device, such as cpu"
        ) from None
    return device
