"""A trained run as a base policy: what it was trained on, put together again in another run's env, and its residual on top."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from residual_rl.base_policies.model import TrainedPolicy
from residual_rl.build import make_base_policy, scale_rule
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.policy import POLICY_FILE, find_policy, load_policy
from residual_rl.residual_env import ResidualEnv
from residual_rl.trusted import with_trust

_log = logging.getLogger(__name__)


def make(path: Path, trusted: bool, env: VecEnv) -> TrainedPolicy:
    """The base policy and the residual of the run, or of the exported policy, at `path`.

    Args:
        path: a run folder (its best model), a model's folder in it, or a policy file.
        trusted: whether what the run was trained on may be read where that can run code. What the run's own settings say does not count.
        env: the worlds of the run on top.

    Raises:
        CheckpointError: there is no policy at `path`.
        ConfigError: it does not fit `env`, or what it was trained on is not there; names the policy and the reason.
    """
    file = path / POLICY_FILE if (path / POLICY_FILE).is_file() else path if path.is_file() else find_policy(path, "best")
    exported = load_policy(file)
    cfg = exported.cfg
    if cfg.residual.chunk == "whole":
        raise ConfigError(f"{file} was trained with --chunk whole, and such a run cannot be a base: train it with --chunk step")
    base_cfg = with_trust(_relocated(cfg.base, file.resolve().parent), trusted)
    try:
        base = make_base_policy(cfg.base_policy_id, base_cfg, env)
        actor = exported.actor(ResidualEnv(env, base, exported.residual_scale))
    except (ConfigError, CheckpointError, UnknownNameError) as error:
        made_of = f"trained on task {cfg.task_id!r} with base policy {cfg.base_policy_id!r}"
        raise ConfigError(f"{file}, {made_of}, does not fit here: {error}") from error
    observed: Any = env.single_observation_space
    names = getattr(cfg.learner, "obs_keys", None) or (*observed.spaces, "base_action")  # a learner that does not say may read all
    shapes = {name: tuple(observed[name].shape) for name in names if name != "base_action"}
    return TrainedPolicy(base, actor, shapes, exported.residual_scale, scale_rule(cfg.residual), env.residual_size)


def _relocated(cfg: Any, folder: Path) -> Any:
    """Settings of a base policy whose relative checkpoint paths hold from here.

    They were given where the training began, most often a folder above the run's: where there is nothing at them from here, the folders
    from `folder` upwards are searched.
    """

    def find(name: str) -> str:
        if not name or Path(name).exists():
            return name
        found = next((parent / name for parent in (folder, *folder.parents) if (parent / name).exists()), None)
        if found is None:
            return name
        _log.warning("%s, which %s was trained on, is not there from here; taking %s", name, folder, found)
        return str(found)

    if hasattr(cfg, "relocated"):
        return cfg.relocated(find)
    return dataclasses.replace(cfg, checkpoint=find(cfg.checkpoint)) if isinstance(getattr(cfg, "checkpoint", None), str) else cfg
