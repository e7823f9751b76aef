"""Training that goes on from a model: what of it is kept, and what the demonstrations must have in common with it."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from torch import Tensor

from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.imitation.config import ImitateCfg
from residual_rl.imitation.model import ImitationModel, ModelSettings
from residual_rl.imitation.normalization import MIN_HALF_RANGE, Statistics
from residual_rl.imitation.obs_padding import ROBOT_BASE_POSE
from residual_rl.utils.module_state import load_module_state, module_state

_SAME = ("algo", "num_obs_steps", "chunk_size", "num_past_actions")
"""Settings that a model keeps."""
_log = logging.getLogger(__name__)


def defaults_from(init_from: str, adapt_obs: bool, preset: str | None, device: str) -> ImitateCfg:
    """The defaults of training, with the settings of the model `init_from` where it has them. With `adapt_obs` those of its observations
    are left out, but for how many it sees. Raises `CheckpointError` where it is no model."""
    model = ImitationModel.load(init_from)
    settings = model.settings
    names = {field.name for field in dataclasses.fields(ImitateCfg)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.network.items() if name in names
    }
    values |= {name: getattr(settings, name) for name in (*_SAME, "num_action_steps", "sampling_steps")}
    values["normalize_actions"] = not model.statistics.raw_actions
    if not adapt_obs:
        values["obs_keys"] = settings.obs_keys
        values["pad_obs_to"] = None if settings.obs_padding is None else settings.obs_size
    cfg = ImitateCfg.default(settings.algo, preset, device)
    return dataclasses.replace(cfg, **values, init_from=init_from, adapt_obs=adapt_obs)


def check_initial(model: ImitationModel, settings: ModelSettings, statistics: Statistics) -> None:
    """Raise `ConfigError` naming both sides where `model` cannot become one of `settings`, whatever it sees.

    Args:
        model: where training begins.
        settings: what is trained.
        statistics: of the demonstrations.
    """
    old = model.settings
    pairs = [(name, getattr(old, name), getattr(settings, name)) for name in _SAME]
    plain, usual = settings.to_dict()["network"], ImitateCfg()
    for name in sorted(old.network.keys() | plain.keys()):
        pairs.append((name, *(network.get(name, getattr(usual, name, None)) for network in (old.network, plain))))
    pairs.append(("normalize_actions", not model.statistics.raw_actions, not statistics.raw_actions))
    for name, theirs, mine in pairs:
        if theirs != mine:
            raise ConfigError(f"{name} is {mine}, but {model.name}, which training begins with, has {theirs}: leave it out")
    modes = [known.task_settings.get("control_mode") for known in (old, settings)]
    if None not in modes and modes[0] != modes[1]:
        raise ConfigError(f"{model.name} gives actions of control mode {modes[0]}, those of the demonstrations are of {modes[1]}")
    if old.action_dim != settings.action_dim:
        raise ConfigError(f"{model.name} gives actions of {old.action_dim} numbers, those of the demonstrations have {settings.action_dim}")


def check_observations(model: ImitationModel, cfg: ImitateCfg, obs_dim: int) -> None:
    """Raise `ConfigError` naming both sides where `model` sees other observations than those of the demonstrations, `obs_dim` numbers
    before they are padded, and `cfg` does not let them be others."""
    if cfg.adapt_obs:
        return
    old, pose = model.settings, len(ROBOT_BASE_POSE.values)
    anew = "--adapt-obs begins the weights that read them anew"
    padded = obs_dim if cfg.pad_obs_to is None else obs_dim + pose
    if old.obs_size != padded:
        given = f"{obs_dim} numbers" if padded == obs_dim else f"{obs_dim} numbers ({padded} with the robot's base pose)"
        if old.obs_size == obs_dim:
            anew = f"--pad-obs-to None takes them as they are, or {anew}"
        elif old.obs_size == padded + pose:
            anew = f"--pad-obs-to {old.obs_size} puts the robot's base pose in, or {anew}"
        raise ConfigError(f"{model.name} sees observations of {old.obs_size} numbers, those of the demonstrations have {given}: {anew}")
    if old.obs_keys != cfg.obs_keys:
        theirs, mine = (", ".join(keys) for keys in (old.obs_keys, cfg.obs_keys))
        raise ConfigError(f"{model.name} sees the observations {theirs}, not {mine}, though they have as many numbers: {anew}")


def initial_statistics(model: ImitationModel, fresh: Statistics, adapt_obs: bool) -> Statistics:
    """The normalisation that `model` goes on with: its own, since its weights were trained under it. With `adapt_obs` that of observations
    is the demonstrations', `fresh`."""
    if not adapt_obs:
        return model.statistics
    return dataclasses.replace(model.statistics, obs_mean=fresh.obs_mean, obs_std=fresh.obs_std, obs_clip=fresh.obs_clip)


def initial_weights(fresh: ImitationModel, model: ImitationModel, adapt_obs: bool) -> None:
    """Give `fresh` the weights of `model`. With `adapt_obs` columns that read observations stay as they are in `fresh`.

    Raises `CheckpointError` where the network does not say which those are, and where others do not fit.
    """
    weights = module_state(model.network)
    if adapt_obs:
        observing = getattr(fresh.network, "observing", None)
        if not observing:
            raise CheckpointError(f"{model.name} does not say which of its weights read observations: --adapt-obs cannot be used with it")
        drawn = module_state(fresh.network)
        for name in observing:
            weights[name] = _adapted(weights[name], drawn[name], fresh.settings.obs_dim)
    load_module_state(fresh.network, weights, model.name)


def _adapted(old: Tensor, fresh: Tensor, obs_dim: int) -> Tensor:
    """The first columns of a weight [outputs, N + O] from `old`, and the O = `obs_dim` that read observations from `fresh`."""
    kept = fresh.shape[1] - obs_dim
    adapted = fresh.clone()
    adapted[:, :kept] = old[:, :kept]
    return adapted


def warn_out_of_range(statistics: Statistics, actions: Tensor) -> None:
    """Log which share of the demonstrated `actions` [N, A] lies where a policy with these `statistics` cannot reach."""
    outside = (actions < statistics.action_low - MIN_HALF_RANGE) | (actions > statistics.action_high + MIN_HALF_RANGE)
    if outside.any():
        _log.warning(
            "%.2g %% of the numbers in the demonstrated actions lie outside of the range that the policy keeps to, and are clipped to it",
            100 * outside.float().mean().item(),
        )
