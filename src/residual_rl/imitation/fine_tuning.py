"""Fine-tuning of imitation models: initial weights and statistics, and checks that the demonstrations match
the model."""

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
"""Settings that fine-tuning cannot change."""
_log = logging.getLogger(__name__)


def defaults_from(init_from: str, adapt_obs: bool, preset: str | None, device: str) -> ImitateCfg:
    """Default settings of training, with those of the model `init_from`. Raises `CheckpointError` if it is
    not a model.

    With `adapt_obs`, the observation settings are not taken from the model, except for their number of steps.
    """
    model = ImitationModel.load(init_from)
    settings = model.settings
    names = {field.name for field in dataclasses.fields(ImitateCfg)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings.network.items()
        if name in names
    }
    values |= {name: getattr(settings, name) for name in (*_SAME, "num_action_steps", "sampling_steps")}
    values["normalize_actions"] = not model.statistics.raw_actions
    if not adapt_obs:
        values["obs_keys"] = settings.obs_keys
        values["pad_obs_to"] = None if settings.obs_padding is None else settings.obs_size
    cfg = ImitateCfg.default(settings.algo, preset, device)
    return dataclasses.replace(cfg, **values, init_from=init_from, adapt_obs=adapt_obs)


def check_initial(model: ImitationModel, settings: ModelSettings, statistics: Statistics) -> None:
    """Raise `ConfigError` if `model` and the new settings differ in more than the observations; the message
    has both values.

    Args:
        model: the initial model.
        settings: settings of the model to train.
        statistics: statistics of the demonstrations.
    """
    # Network and actions
    old = model.settings
    pairs = [(name, getattr(old, name), getattr(settings, name)) for name in _SAME]
    plain, usual = settings.to_dict()["network"], ImitateCfg()
    for name in sorted(old.network.keys() | plain.keys()):
        pairs.append(
            (name, *(network.get(name, getattr(usual, name, None)) for network in (old.network, plain)))
        )
    pairs.append(("normalize_actions", not model.statistics.raw_actions, not statistics.raw_actions))
    for name, theirs, mine in pairs:
        if theirs != mine:
            raise ConfigError(
                f"{name} is {mine}, but {model.name}, the initial model, has {theirs}: do not set {name}"
            )
    modes = [known.task_settings.get("control_mode") for known in (old, settings)]
    if None not in modes and modes[0] != modes[1]:
        raise ConfigError(f"{model.name} has control mode {modes[0]}, but the demonstrations have {modes[1]}")
    if old.action_dim != settings.action_dim:
        raise ConfigError(
            f"{model.name} has actions of size {old.action_dim}, but the demonstrations have"
            f" {settings.action_dim}"
        )


def check_observations(model: ImitationModel, cfg: ImitateCfg, obs_dim: int) -> None:
    """Raise `ConfigError` if the observations of `model` and the demonstrations differ, unless
    `cfg.adapt_obs` is set.

    `obs_dim` is the size of the demonstrations' observations before padding. The message has both sides and
    the fix.
    """
    if cfg.adapt_obs:
        return
    old, pose = model.settings, len(ROBOT_BASE_POSE.values)
    fix = "use --adapt-obs to reinitialise the weights that read them"
    padded = obs_dim if cfg.pad_obs_to is None else obs_dim + pose
    if old.obs_size != padded:
        given = (
            f"{obs_dim} numbers"
            if padded == obs_dim
            else f"{obs_dim} numbers ({padded} with the robot's base pose)"
        )
        if old.obs_size == obs_dim:
            fix = f"use --pad-obs-to None to disable padding, or {fix}"
        elif old.obs_size == padded + pose:
            fix = f"use --pad-obs-to {old.obs_size} to insert the robot's base pose, or {fix}"
        raise ConfigError(
            f"{model.name} has observations of {old.obs_size} numbers, but the demonstrations have {given}:"
            f" {fix}"
        )
    if old.obs_keys != cfg.obs_keys:
        theirs, mine = (", ".join(keys) for keys in (old.obs_keys, cfg.obs_keys))
        raise ConfigError(
            f"{model.name} has the observations {theirs}, not {mine}, although of equal size: {fix}"
        )


def initial_statistics(model: ImitationModel, fresh: Statistics, adapt_obs: bool) -> Statistics:
    """The statistics for fine-tuning `model`: its own, which its weights were trained with.

    With `adapt_obs`, the statistics of the observations are those of the demonstrations, `fresh`.
    """
    if not adapt_obs:
        return model.statistics
    return dataclasses.replace(
        model.statistics, obs_mean=fresh.obs_mean, obs_std=fresh.obs_std, obs_clip=fresh.obs_clip
    )


def initial_weights(fresh: ImitationModel, model: ImitationModel, adapt_obs: bool) -> None:
    """Copy the weights of `model` into `fresh`. With `adapt_obs`, columns that read observations keep their
    values in `fresh`.

    Raises `CheckpointError` if the network does not declare which those are, or if other weights do not
    match.
    """
    weights = module_state(model.network)
    if adapt_obs:
        observing = getattr(fresh.network, "observing", None)
        if not observing:
            raise CheckpointError(
                f"--adapt-obs cannot be used with {model.name}: its network does not declare which weights"
                " read observations"
            )
        drawn = module_state(fresh.network)
        for name in observing:
            weights[name] = _adapted(weights[name], drawn[name], fresh.settings.obs_dim)
    load_module_state(fresh.network, weights, model.name)


def _adapted(old: Tensor, fresh: Tensor, obs_dim: int) -> Tensor:
    """The first columns of a weight [outputs, N + O] from `old`, and the O = `obs_dim` that read observations
    from `fresh`."""
    kept = fresh.shape[1] - obs_dim
    adapted = fresh.clone()
    adapted[:, :kept] = old[:, :kept]
    return adapted


def warn_out_of_range(statistics: Statistics, actions: Tensor) -> None:
    """Log a warning if `actions` [N, A] are outside of the range of a policy with these `statistics`, with
    their fraction."""
    outside = (actions < statistics.action_low - MIN_HALF_RANGE) | (
        actions > statistics.action_high + MIN_HALF_RANGE
    )
    if outside.any():
        _log.warning(
            "%.2g %% of the elements of the demonstrated actions are outside of the policy's range and are"
            " clipped",
            100 * outside.float().mean().item(),
        )
