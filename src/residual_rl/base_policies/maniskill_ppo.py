"""Actors of ManiSkill's own PPO baselines, from the state dicts that these save (`ckpt_*.pt`).

Source: `examples/baselines/ppo` of ManiSkill 3. `ppo.py`: linear layers with tanh between them, 3 × 256 units, give the mean action of the
flat state. `ppo_rgb.py`: the convolutions of Mnih et al. (2015), "Human-level control through deep reinforcement learning", and a linear
layer make 256 features of all cameras' images, a second one 256 of the state where that is included; linear layers with ReLU between them
give the mean action. Neither normalises observations. The action is the mean, clipped.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.types import BasePolicy, Obs

_ACTOR, _IMAGES, _FEATURES, _STATE = (
    "actor_mean",
    "feature_net.extractors.rgb.0",
    "feature_net.extractors.rgb.1.0",
    "feature_net.extractors.state",
)
_STRIDES = (4, 2, 1)
"""Of the convolutions."""
Layer = tuple[Tensor, Tensor]
"""Weight and bias."""


class ManiSkillPPOPolicy(BasePolicy):
    """The deterministic policy of a ManiSkill PPO baseline.

    It computes in float64: an action must not depend on how many worlds are asked with it.

    Args:
        state: its state dict.
        input_keys: observations that it is given, images and vectors, each kind joined in this order; none are the usual ones.
        env: its observations and actions must be those that it was trained on.
        name: how errors call it.

    Raises `CheckpointError` for another kind of state dict, and `ConfigError` where sizes differ, naming both.
    """

    def __init__(self, state: Mapping[str, Tensor], input_keys: Sequence[str], env: VecEnv, name: str):
        state = {
            key: value.to(env.device, torch.float64)
            for key, value in state.items()
            if value.is_floating_point()
        }
        self._actor = _layers(state, _ACTOR, 2, name)
        self._sees = any(key.startswith("feature_net.") for key in state)
        self._convolutions = _layers(state, _IMAGES, 4, name) if self._sees else []
        self._features = _layer(state, _FEATURES, 2, name) if self._sees else None
        self._of_state = _layer(state, _STATE, 2, name) if f"{_STATE}.weight" in state else None
        if self._sees and len(self._convolutions) != len(_STRIDES):
            raise CheckpointError(
                f"{name} has {len(self._convolutions)} convolutions; a ManiSkill PPO of images has {len(_STRIDES)}"
            )
        observed: Mapping[str, Any] = env.single_observation_space.spaces  # type: ignore[attr-defined]
        images = {key: tuple(space.shape) for key, space in observed.items() if len(space.shape) == 3}
        keys = tuple(input_keys) or self._usual(images, name)
        for key in keys:
            if key not in observed:
                raise ConfigError(
                    f"{name} needs the observation {key!r}; the env has {', '.join(sorted(observed))}"
                )
        self.inputs = {key: tuple(observed[key].shape) for key in keys}  # type: ignore[misc]
        self._cameras = [key for key in keys if key in images]
        self._vectors = [key for key in keys if key not in images]
        self._check(len(env.action_unit), name)

    def _usual(self, images: Mapping[str, Any], name: str) -> tuple[str, ...]:
        """The observations that the baselines are trained on."""
        if not self._sees:
            return ("state",)
        if len(images) != 1:
            has = ", ".join(images) or "none: choose --obs-mode rgb"
            raise ConfigError(
                f"{name} sees images and the env has these cameras: {has}; name those that it was trained on, in their order, with "
                "--base.input-keys"
            )
        return (*images, *(() if self._of_state is None else ("proprioception",)))

    def _check(self, action_dim: int, name: str) -> None:
        """Raise `ConfigError` where what the env gives and takes has other sizes than the layers."""
        given = sum(torch.Size(self.inputs[key]).numel() for key in self._vectors)
        first = self._of_state if self._sees else self._actor[0]
        wanted = 0 if first is None else first[0].shape[1]
        if wanted != given:
            names = ", ".join(self._vectors) or "no vector"
            raise ConfigError(
                f"{name} was trained on {wanted} numbers of state; this env gives it {given} ({names}): choose the task, robot and "
                "observation mode that it was trained with, or other --base.input-keys"
            )
        if self._sees:
            self._check_images(name)
        elif self._cameras:
            raise ConfigError(
                f"{name} sees no images; leave {', '.join(self._cameras)} out of --base.input-keys"
            )
        if self._actor[-1][0].shape[0] != action_dim:
            raise ConfigError(
                f"{name} gives actions of {self._actor[-1][0].shape[0]}; this env takes actions of {action_dim}: choose the robot and the "
                "control mode that it was trained with"
            )

    def _check_images(self, name: str) -> None:
        assert self._features is not None
        sizes = {self.inputs[key][:2] for key in self._cameras}
        if len(sizes) != 1:
            raise ConfigError(
                f"{name} needs images of one size; --base.input-keys give it {sorted(sizes) or 'none'}"
            )
        channels = sum(self.inputs[key][2] for key in self._cameras)
        wanted = self._convolutions[0][0].shape[1]
        if channels != wanted:
            cameras = ", ".join(self._cameras)
            raise ConfigError(
                f"{name} was trained on images of {wanted} channels; this env gives it {channels} ({cameras})"
            )
        height, width = sizes.pop()
        try:
            count = self._convolved(torch.zeros(1, channels, height, width).to(self._features[0])).shape[1]
        except RuntimeError as error:
            raise ConfigError(
                f"{name} cannot be run on images of {height} x {width}: they are too small"
            ) from error
        if count != self._features[0].shape[1]:
            raise ConfigError(
                f"{name} was trained on images that leave {self._features[0].shape[1]} numbers after its convolutions; this env's, "
                f"{height} x {width}, leave {count}: choose its --image-size"
            )

    @torch.no_grad()
    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:  # noqa: ARG002
        x = torch.cat([obs[key].double() for key in self._vectors], 1) if self._vectors else None
        if self._features is not None:
            images = torch.cat([obs[key].double() for key in self._cameras], 3).permute(0, 3, 1, 2) / 255
            parts = [F.linear(self._convolved(images), *self._features).relu()]
            if self._of_state is not None:
                assert x is not None
                parts.append(F.linear(x, *self._of_state))
            x = torch.cat(parts, 1)
        assert x is not None
        for weight, bias in self._actor[:-1]:
            x = F.linear(x, weight, bias)
            x = x.relu() if self._sees else x.tanh()
        action: Tensor = F.linear(x, *self._actor[-1]).clamp(-1.0, 1.0).float()
        return action[:, None]

    def _convolved(self, images: Tensor) -> Tensor:
        """Flat features [b, N] of images [b, C, H, W]."""
        for (weight, bias), stride in zip(self._convolutions, _STRIDES, strict=True):
            images = F.conv2d(images, weight, bias, stride).relu()
        return images.flatten(1)


def _layer(state: Mapping[str, Tensor], name: str, dimensions: int, file: str) -> Layer:
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    if weight is None or bias is None or weight.dim() != dimensions or bias.shape != weight.shape[:1]:
        raise CheckpointError(
            f"{file} is no actor of ManiSkill's PPO: it has no layer {name} with weight and bias of its shape"
        )
    return weight, bias


def _layers(state: Mapping[str, Tensor], prefix: str, dimensions: int, file: str) -> list[Layer]:
    """The layers `prefix.N`, every other of a sequence: activations are between them."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.weight")
    numbers = sorted(int(match[1]) for match in map(pattern.fullmatch, state) if match)
    if not numbers or numbers != list(range(0, 2 * len(numbers), 2)):
        raise CheckpointError(
            f"{file} is no actor of ManiSkill's PPO: expected {prefix}.0, {prefix}.2, …; it has {', '.join(sorted(state)[:4]) or 'nothing'}"
        )
    layers = [_layer(state, f"{prefix}.{number}", dimensions, file) for number in numbers]
    for (before, _), (after, _) in itertools.pairwise(layers):
        if after.shape[1] != before.shape[0]:
            raise CheckpointError(
                f"{file} is damaged: a layer of {prefix} takes {after.shape[1]} numbers of the {before.shape[0]} before it"
            )
    return layers
