"""A trained run as a base policy: what it was trained on, put together again in another run's env, and its residual on top."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.composition import Composition, make_composition
from residual_rl.envs.spaces import with_base_action
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.exported_policy import POLICY_FILE, find_policy, load_policy
from residual_rl.types import ActionChunk, BasePolicy, Obs, State
from residual_rl.utils.trusted import with_trust

_log = logging.getLogger(__name__)


def make_trained_run(path: Path, trusted: bool, env: VecEnv) -> TrainedPolicy:
    """The base policy and the residual of the run, or of the exported policy, at `path`.

    Args:
        path: a run folder (its best model), a model's folder in it, or a policy file.
        trusted: whether what the run was trained on may be read where that can run code. What the run's own settings say does not count.
        env: the worlds of the run on top.

    Raises:
        CheckpointError: there is no policy at `path`.
        ConfigError: it does not fit `env`, or what it was trained on is not there; names the policy and the reason.
    """
    file = (
        path / POLICY_FILE
        if (path / POLICY_FILE).is_file()
        else path
        if path.is_file()
        else find_policy(path, "best")
    )
    exported = load_policy(file)
    cfg = exported.cfg
    if cfg.residual.chunk == "whole":
        raise ConfigError(
            f"{file} was trained with --chunk whole, and such a run cannot be a base: train it with --chunk step"
        )
    base_cfg = with_trust(_relocated(cfg.base, file.resolve().parent), trusted)
    try:
        base = make_base_policy(cfg.base_policy_id, base_cfg, env)
        actor = exported.actor(with_base_action(env), len(env.action_unit), env.device)
    except (ConfigError, CheckpointError, UnknownNameError) as error:
        made_of = f"trained on task {cfg.task_id!r} with base policy {cfg.base_policy_id!r}"
        raise ConfigError(f"{file}, {made_of}, does not fit here: {error}") from error
    observed: Any = env.single_observation_space
    names = getattr(cfg.learner, "obs_keys", None) or (
        *observed.spaces,
        "base_action",
    )  # a learner that does not say may read all
    shapes = {name: tuple(observed[name].shape) for name in names if name != "base_action"}
    composition = make_composition(cfg.residual, exported.residual_scale, env.residual_unit)
    return TrainedPolicy(base, actor, shapes, composition)


def _relocated(cfg: Any, folder: Path) -> Any:
    """Settings of a base policy whose relative checkpoint paths hold from here.

    They were given where the training began, most often a folder above the run's: where there is nothing at them from here, the folders
    from `folder` upwards are searched.
    """

    def find(name: str) -> str:
        if not name or Path(name).exists():
            return name
        found = next(
            (parent / name for parent in (folder, *folder.parents) if (parent / name).exists()), None
        )
        if found is None:
            return name
        _log.warning("%s, which %s was trained on, is not there from here; taking %s", name, folder, found)
        return str(found)

    if hasattr(cfg, "relocated"):
        return cfg.relocated(find)
    return (
        dataclasses.replace(cfg, checkpoint=find(cfg.checkpoint))
        if isinstance(getattr(cfg, "checkpoint", None), str)
        else cfg
    )


class TrainedPolicy(BasePolicy):
    """A base policy and the residual that was trained on it: what it plans is what the run would execute.

    Args:
        base: the run's own base policy.
        actor: its deterministic residual policy, [b, A] of named observations and `base_action`.
        obs_keys: the observations of the env that the actor reads, with their shapes.
        composition: of the run, with the scale it was exported with.
    """

    def __init__(
        self,
        base: BasePolicyExecutor,
        actor: Callable[[Obs], Tensor],
        obs_keys: Mapping[str, tuple[int, ...]],
        composition: Composition,
    ):
        self.inputs = {**obs_keys, **base.policy.inputs}  # type: ignore[misc]
        self.remote = base.policy.remote
        self._base = base
        self._actor = actor
        self._composition = composition

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> ActionChunk:
        base_action = self._base.act_rows(obs, env_ids)
        residual_action = self._actor({**obs, "base_action": base_action})
        uncertainty = self._base.uncertainty[env_ids]
        action = self._composition.apply(base_action, residual_action, uncertainty)
        return ActionChunk(action[:, None], uncertainty[:, None] if self._base.has_uncertainty else None)

    def reset(self, mask: Tensor) -> None:
        self._base.reset(mask)

    def state_dict(self) -> State:
        return {"base": self._base.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self._base.load_state_dict(state["base"])
