"""Conversion of public Diffusion Policy checkpoints (state dicts of `ConditionalUnet1D`) to imitation models.

The format is that of ManiSkill's baseline and Policy Decorator: a file written by `torch.save` with the state
dicts `agent` and `ema_agent` (its moving average), in which the tensors of the network have the prefix
`noise_pred_net.`. Sizes are derived from the shapes of the tensors; group normalisation has 8 groups, as
published. These checkpoints have no normalisation statistics: observations and actions, in [-1, 1], are used
unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.imitation.convert_cfg import ConvertCfg
from residual_rl.imitation.model import ImitationModel, ModelSettings
from residual_rl.imitation.normalization import Statistics
from residual_rl.imitation.obs_padding import ROBOT_BASE_POSE, padding_to
from residual_rl.utils.trusted import read_saved_dict

_TIME, _CONDITION = "diffusion_step_encoder.1.weight", "down_modules.0.0.cond_encoder.1.weight"
_NAMED = 4
"""Maximum number of tensors of each kind listed in an error."""
State = Mapping[str, Tensor]


def read_public_unet(path: Path, cfg: ConvertCfg, trusted: bool) -> ImitationModel:
    """Read the checkpoint `path` and convert it to an imitation model.

    Raises:
        ConfigError: the file is not trusted, or `cfg` does not match it.
        CheckpointError: the file is not such a checkpoint; the message lists the tensors.
    """
    name, tensors = _chosen(_networks(read_saved_dict(path, trusted)), cfg.weights, path)
    where = f"{path} ({name})" if name else str(path)
    settings = _settings(tensors, cfg, where)
    statistics = Statistics.identity(settings.obs_size, settings.action_dim)
    model = ImitationModel(settings, statistics, name=where)
    _check_tensors(tensors, model.network.state_dict(), where)
    model.network.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    return model


def _networks(saved: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, State, list[str]]]:
    """Find the networks in a file, at any depth: their names, their tensors, and the names of other tensors
    beside them."""
    tensors = {str(key): value for key, value in saved.items() if isinstance(value, Tensor)}
    prefixes = [key.removesuffix(_TIME) for key in tensors if key.endswith(_TIME)]
    beside = [key for key in tensors if not any(key.startswith(prefix) for prefix in prefixes)]
    for prefix in prefixes:
        inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        yield (at + prefix).strip("./"), inside, beside
    for key, value in saved.items():
        if isinstance(value, Mapping):
            yield from _networks(value, f"{at}{key}/")


def _chosen(
    networks: Iterator[tuple[str, State, list[str]]], wanted: str | None, path: Path
) -> tuple[str, State]:
    """Select a network. Raises `CheckpointError` if there is none, or if the policy has other parts than the
    network."""
    found = {name: (tensors, beside) for name, tensors, beside in networks}
    if not found:
        raise CheckpointError(
            f"{path} contains no conditional U-Net: no tensor is named …{_TIME}, as in public Diffusion"
            " Policy checkpoints"
        )
    averaged = [name for name in found if "ema" in name.lower()]
    if wanted is not None and wanted not in found:
        raise UnknownNameError(f"network of {path}", wanted, found)
    choice = [wanted] if wanted is not None else averaged or list(found)
    if len(choice) > 1:
        raise ConfigError(
            f"{path} contains several networks: choose one of {', '.join(choice)} with --weights"
        )
    tensors, beside = found[choice[0]]
    if beside:
        raise CheckpointError(
            f"{path} has tensors beside the U-Net {choice[0]!r}: {_listed(beside)}; policies with image"
            " encoders or normalizers cannot be converted, only those that read an unnormalised state"
        )
    return choice[0], tensors


def _settings(tensors: State, cfg: ConvertCfg, where: str) -> ModelSettings:
    """The settings of the model, from the shapes of the tensors and `cfg`."""
    # Read the sizes of the network from the shapes of its tensors.
    time_dim = _shape(tensors, _TIME, 2, where)[1]
    channels: list[int] = []
    action_dim = kernel_size = 0
    while not channels or f"down_modules.{len(channels)}.0.blocks.0.block.0.weight" in tensors:
        outputs, inputs, kernel_size = _shape(
            tensors, f"down_modules.{len(channels)}.0.blocks.0.block.0.weight", 3, where
        )
        action_dim = action_dim or inputs
        channels.append(outputs)
    window_dim = _shape(tensors, _CONDITION, 2, where)[1] - time_dim
    if window_dim < 1 or window_dim % cfg.num_obs_steps:
        raise ConfigError(
            f"{where} has {window_dim} inputs besides the time, which cannot be {cfg.num_obs_steps}"
            " observations of equal size: choose the --num-obs-steps that it was trained with"
        )
    obs_dim = window_dim // cfg.num_obs_steps
    # Subtract the padding from the size of the observations.
    padding = None
    if cfg.pad_obs_to is not None:
        if cfg.pad_obs_to != obs_dim:
            raise ConfigError(
                f"{where} has observations of size {obs_dim} with num_obs_steps {cfg.num_obs_steps}, not"
                f" {cfg.pad_obs_to}"
            )
        pose = ROBOT_BASE_POSE
        if obs_dim < pose.index + len(pose.values):
            raise ConfigError(
                f"{where} has observations of size {obs_dim}, too small for the robot's base pose"
                f" ({len(pose.values)} numbers) at index {pose.index}: do not set pad_obs_to"
            )
        padding = padding_to(obs_dim, obs_dim - len(pose.values))
    # Settings that do not follow from the tensors are in `cfg`.
    return ModelSettings(
        algo="diffusion",
        network={
            "channels": channels,
            "kernel_size": kernel_size,
            "time_dim": time_dim,
            "diffusion_steps": cfg.diffusion_steps,
            "layout": "public",
        },
        obs_keys=(cfg.obs_key,),
        obs_shapes={cfg.obs_key: (obs_dim - (len(padding.values) if padding else 0),)},
        action_dim=action_dim,
        num_obs_steps=cfg.num_obs_steps,
        chunk_size=cfg.chunk_size,
        num_action_steps=cfg.num_action_steps,
        sampling_steps=cfg.sampling_steps,
        task_id=cfg.task,
        task_settings={} if cfg.control_mode is None else {"control_mode": cfg.control_mode},
        num_past_actions=cfg.num_obs_steps - 1,
        obs_padding=padding,
    )


def _shape(tensors: State, name: str, dimensions: int, where: str) -> torch.Size:
    """The shape of a tensor, which must exist and have `dimensions` nonzero dimensions."""
    if name not in tensors:
        raise CheckpointError(
            f"{where} is not a conditional U-Net: missing {name}; it has {_listed(sorted(tensors))}"
        )
    shape = tensors[name].shape
    if len(shape) != dimensions or 0 in shape:
        raise CheckpointError(
            f"{where} is not a conditional U-Net: {name} has shape {list(shape)}, expected {dimensions}"
            " nonzero dimensions"
        )
    return shape


def _check_tensors(tensors: State, own: State, where: str) -> None:
    """Raise `CheckpointError` with the tensors that are missing, unexpected, or differ in shape from the
    network's `own`."""
    both = own.keys() & tensors.keys()
    others = [
        f"{name} {list(tensors[name].shape)} (expected {list(own[name].shape)})"
        for name in own
        if name in both and tensors[name].shape != own[name].shape
    ]
    found = {
        "missing": [name for name in own if name not in both],
        "unexpected": [name for name in tensors if name not in both],
        "of another shape": others,
    }
    problems = [f"{kind}: {_listed(names)}" for kind, names in found.items() if names]
    if problems:
        raise CheckpointError(
            f"{where} is not the public conditional U-Net of these sizes; {'; '.join(problems)}"
        )


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
