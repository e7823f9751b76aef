"""Actors of ManiSkill's PPO baselines, from their saved state dicts (`ckpt_*.pt`).

Source: `examples/baselines/ppo` of ManiSkill 3.

- `ppo.py`: an MLP of 3 × 256 units with tanh maps the flat state to the mean action.
- `ppo_rgb.py`: the convolutions of Mnih et al. (2015), "Human-level control through deep reinforcement
  learning", and a linear layer map the images of all cameras to 256 features; a second linear layer maps the
  state, if included, to 256 more; an MLP with ReLU maps them to the mean action.

Neither normalises observations. The action is the clipped mean.
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
"""Strides of the convolutions."""
Layer = tuple[Tensor, Tensor]
"""Weight and bias."""


class ManiSkillPPOPolicy(BasePolicy):
    """The deterministic policy of a ManiSkill PPO baseline.

    It computes in float64, so that an action does not depend on the size of the batch.

    Args:
        state: the actor's state dict.
        input_keys: observations for the actor; images and vectors are each joined in this order. Empty: those
            that the baselines use.
        env: the env, whose observations and actions must be those of the actor's training.
        name: name of the policy in error messages.

    Raises:
        CheckpointError: `state` is not that of such an actor.
        ConfigError: sizes differ between the actor and `env`.
    """

    def __init__(self, state: Mapping[str, Tensor], input_keys: Sequence[str], env: VecEnv, name: str):
        # Layers.
        state = {
            key: value.to(env.device, torch.float64)
            for key, value in state.items()
            if value.is_floating_point()
        }
        self._actor = _layers(state, _ACTOR, 2, name)
        self._uses_images = any(key.startswith("feature_net.") for key in state)
        self._convolutions = _layers(state, _IMAGES, 4, name) if self._uses_images else []
        self._image_features = _layer(state, _FEATURES, 2, name) if self._uses_images else None
        self._state_features = _layer(state, _STATE, 2, name) if f"{_STATE}.weight" in state else None
        if self._uses_images and len(self._convolutions) != len(_STRIDES):
            found = len(self._convolutions)
            raise CheckpointError(
                f"{name} has {found} convolutions; ManiSkill's PPO for images has {len(_STRIDES)}"
            )

        # Inputs.
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
        """The observations that the baselines use."""
        if not self._uses_images:
            return ("state",)
        if len(images) != 1:
            has = ", ".join(images) or "none: choose --obs-mode rgb"
            raise ConfigError(
                f"{name} uses images, and the env has the cameras: {has}; name those of its training, "
                "in the same order, with --base.input-keys"
            )
        return (*images, *(() if self._state_features is None else ("proprioception",)))

    def _check(self, action_dim: int, name: str) -> None:
        """Raise `ConfigError` if the env's observations or actions do not fit the layers."""
        given = sum(torch.Size(self.inputs[key]).numel() for key in self._vectors)
        first = self._state_features if self._uses_images else self._actor[0]
        wanted = 0 if first is None else first[0].shape[1]
        if wanted != given:
            names = ", ".join(self._vectors) or "no vector"
            raise ConfigError(
                f"{name} was trained on {wanted} numbers of state; this env gives it {given} ({names}): "
                "choose the task, robot and observation mode of its training, or other --base.input-keys"
            )
        if self._uses_images:
            self._check_images(name)
        elif self._cameras:
            cameras = ", ".join(self._cameras)
            raise ConfigError(f"{name} does not use images: leave {cameras} out of --base.input-keys")
        predicted = self._actor[-1][0].shape[0]
        if predicted != action_dim:
            raise ConfigError(
                f"{name} predicts actions of {predicted} numbers; this env takes {action_dim}: "
                "choose the robot and the control mode of its training"
            )

    def _check_images(self, name: str) -> None:
        assert self._image_features is not None
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
        weight = self._image_features[0]
        try:
            count = self._convolved(torch.zeros(1, channels, height, width).to(weight)).shape[1]
        except RuntimeError as error:
            raise ConfigError(f"images of {height} x {width} px are too small for {name}") from error
        if count != weight.shape[1]:
            raise ConfigError(
                f"{name} was trained on images with {weight.shape[1]} features after its convolutions; "
                f"this env's, of {height} x {width} px, have {count}: set --image-size to that of its "
                "training"
            )

    @torch.no_grad()
    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:  # noqa: ARG002
        x = torch.cat([obs[key].double() for key in self._vectors], 1) if self._vectors else None
        if self._image_features is not None:
            images = torch.cat([obs[key].double() for key in self._cameras], 3).permute(0, 3, 1, 2) / 255
            parts = [F.linear(self._convolved(images), *self._image_features).relu()]
            if self._state_features is not None:
                assert x is not None
                parts.append(F.linear(x, *self._state_features))
            x = torch.cat(parts, 1)
        assert x is not None
        for weight, bias in self._actor[:-1]:
            x = F.linear(x, weight, bias)
            x = x.relu() if self._uses_images else x.tanh()
        action: Tensor = F.linear(x, *self._actor[-1]).clamp(-1.0, 1.0).float()
        return action[:, None]

    def _convolved(self, images: Tensor) -> Tensor:
        """Flat convolutional features [b, N] of images [b, C, H, W]."""
        for (weight, bias), stride in zip(self._convolutions, _STRIDES, strict=True):
            images = F.conv2d(images, weight, bias, stride).relu()
        return images.flatten(1)


def _layer(state: Mapping[str, Tensor], name: str, dimensions: int, file: str) -> Layer:
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    if weight is None or bias is None or weight.dim() != dimensions or bias.shape != weight.shape[:1]:
        raise CheckpointError(
            f"{file} is not an actor of ManiSkill's PPO: the layer {name} is missing or has another shape"
        )
    return weight, bias


def _layers(state: Mapping[str, Tensor], prefix: str, dimensions: int, file: str) -> list[Layer]:
    """The layers `prefix.N` for N = 0, 2, …; the activations between them have no weights."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.weight")
    numbers = sorted(int(match[1]) for match in map(pattern.fullmatch, state) if match)
    if not numbers or numbers != list(range(0, 2 * len(numbers), 2)):
        found = ", ".join(sorted(state)[:4]) or "nothing"
        raise CheckpointError(
            f"{file} is not an actor of ManiSkill's PPO: expected {prefix}.0, {prefix}.2, …; it has {found}"
        )
    layers = [_layer(state, f"{prefix}.{number}", dimensions, file) for number in numbers]
    for (before, _), (after, _) in itertools.pairwise(layers):
        if after.shape[1] != before.shape[0]:
            raise CheckpointError(
                f"{file} is damaged: a layer of {prefix} has {after.shape[1]} inputs, "
                f"and the one before it {before.shape[0]} outputs"
            )
    return layers
