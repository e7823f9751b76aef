"""A trained run as a base policy: the run's own base policy and its residual, in another run's env."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import Tensor

from residual_rl.base_policies.base_files import located, with_paths
from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.composition import Composition, make_composition
from residual_rl.config import with_trust
from residual_rl.envs.spaces import BASE_OBS, CHUNK_OBS, observed, shape_of, with_base_action
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.exported_policy import ExportedPolicy, find_policy, load_policy
from residual_rl.types import ActionChunk, BasePolicy, Obs, State
from residual_rl.utils.consent import reading_nested_file

_log = logging.getLogger(__name__)
_chain: ContextVar[tuple[Path, ...]] = ContextVar("chain", default=())
"""The runs whose base policies are being made, from the outermost one on."""


def make_trained_run(path: Path, trusted: bool, env: VecEnv) -> TrainedPolicy:
    """The base policy and the residual of the run, or of the exported policy, at `path`.

    Args:
        path: a run folder (its best model), a model's folder in it, or a policy file.
        trusted: whether the run's own base policy may be read from a file that can run code. It may also if
            the user trained the run with that trust, see `TrainCfg.from_dict`.
        env: the env of the run that uses it as its base policy.

    Raises:
        CheckpointError: there is no policy at `path`.
        ConfigError: it does not fit `env`, or its own base policy is missing; names the policy and the
            reason.
    """
    file = find_policy(path).file
    with reading_nested_file():
        exported = load_policy(file)
    return make_exported(exported, file, trusted, env)


def make_exported(exported: ExportedPolicy, file: Path, trusted: bool, env: VecEnv) -> TrainedPolicy:
    """The base policy and the residual of the policy `exported`, which was read from `file`; see
    `make_trained_run`."""
    cfg = exported.cfg
    if cfg.residual.chunk == "whole":
        raise ConfigError(
            f"{file} was trained with --chunk whole, which cannot be a base policy: train it with --chunk "
            "step"
        )

    # Make its base policy and its actor. A learner without `obs_keys` may read all observations.
    names = getattr(cfg.learner, "obs_keys", None) or (*observed(env), "base_action")
    reads_chunk = not set(CHUNK_OBS).isdisjoint(names)
    folder = file.resolve().parent
    base_cfg = (
        located(cfg.base, exported.base_files, folder)
        if exported.base_files
        else _relocated(cfg.base, folder)
    )
    # The user's own trust was in the file at its former place.
    still_trusted = getattr(cfg.base, "trust_checkpoint", False) and base_cfg == cfg.base
    base_cfg = with_trust(base_cfg, trusted or still_trusted)
    try:
        with _being_made(file):
            base = make_base_policy(cfg.base_policy_id, base_cfg, env)
        space = with_base_action(env, base.policy.num_action_steps if reads_chunk else None)
        actor = exported.actor(space, len(env.action_unit), env.device)
    except (ConfigError, CheckpointError, UnknownNameError) as error:
        origin = f"trained on task {cfg.task_id!r} with base policy {cfg.base_policy_id!r}"
        raise ConfigError(f"{file}, {origin}, does not fit this env: {error}") from error

    shapes = {name: shape_of(env, name) for name in names if name not in BASE_OBS}
    composition = make_composition(cfg.residual, exported.residual_scale, env.residual_unit)
    return TrainedPolicy(base, actor, shapes, composition, reads_chunk)


@contextlib.contextmanager
def _being_made(file: Path) -> Iterator[None]:
    """Context in which the base policy of the run at `file` is made. Raises `ConfigError` inside itself."""
    chain = _chain.get()
    if file.resolve() in chain:
        raise ConfigError(f"{file} is its own base policy, directly or through other runs")
    token = _chain.set((*chain, file.resolve()))
    try:
        yield
    finally:
        _chain.reset(token)


def _relocated(cfg: Any, folder: Path) -> Any:
    """Settings of a base policy, with relative checkpoint paths resolved.

    The paths are relative to the folder where the training was started, which most often is a parent of the
    run folder. A path that does not exist from the current folder is looked for in `folder` and its parents.
    """

    def find(name: str) -> str:
        if not name or Path(name).exists():
            return name
        places = [parent / name for parent in (folder, *folder.parents)]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            return name
        _log.warning("%s, the base policy of %s, does not exist here; using %s", name, folder, found)
        return str(found)

    return with_paths(cfg, find)


class TrainedPolicy(BasePolicy):
    """A base policy and the residual trained on top of it; it predicts the actions that the run would
    execute.

    Args:
        base: the run's own base policy.
        actor: its deterministic residual policy, which maps named observations and `base_action` to [b, A].
        obs_keys: the env observations that the actor reads, with their shapes.
        composition: the run's composition, with the exported scale.
        reads_chunk: whether the actor reads `base_chunk` or `chunk_position`.
    """

    def __init__(
        self,
        base: BasePolicyExecutor,
        actor: Callable[[Obs], Tensor],
        obs_keys: Mapping[str, tuple[int, ...]],
        composition: Composition,
        reads_chunk: bool,
    ):
        self.inputs = {**obs_keys, **base.policy.inputs}  # type: ignore[misc]
        self.remote = base.policy.remote
        self._base = base
        self._actor = actor
        self._composition = composition
        self._reads_chunk = reads_chunk

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> ActionChunk:
        base_action = self._base.act_rows(obs, env_ids)
        seen = {**obs, "base_action": base_action, "elapsed_steps": self._base.elapsed_steps[env_ids]}
        if self._reads_chunk:
            seen |= {name: value[env_ids] for name, value in self._base.chunk_obs.items()}
        residual_action = self._actor(seen)
        uncertainty = self._base.uncertainty[env_ids]
        action = self._composition.apply(base_action, residual_action, uncertainty)
        return ActionChunk(action[:, None], uncertainty[:, None] if self._base.has_uncertainty else None)

    def reset(self, mask: Tensor) -> None:
        self._base.reset(mask)

    def state_dict(self) -> State:
        return {"base": self._base.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self._base.load_state_dict(state["base"])
