"""Networks of the learners: what they see of named observations, MLPs on it, and the residual policy that acts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residual_rl.envs.spaces import is_image
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.learners.common.image_encoders import ImageEncoder
from residual_rl.learners.common.normalizers import RunningMeanStd
from residual_rl.types import Obs

if TYPE_CHECKING:
    from gymnasium.spaces import Dict

    ObsSpace = Dict | Mapping[str, tuple[int, ...]]


def _tanh(x: Tensor) -> Tensor:
    if x.is_cuda:
        return torch.tanh(x)
    return (
        x.mul_(2.0).sigmoid_().mul(2.0).sub_(1.0)
    )  # within 2e-7 of torch.tanh, and a third of its time on a CPU


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": _tanh,
    "relu": F.relu,
    "elu": F.elu,
    "silu": F.silu,
}
"""By name; they may overwrite what they are given."""


_ROBOT_KEYS = ("joint_position", "joint_velocity", "joint_target", "ee_position", "tcp_pose")
"""What a robot knows of itself, by the names that envs share."""


def default_obs_keys(space: ObsSpace) -> tuple[str, ...]:
    """The observations that a policy sees where none are named: `state`, the base action and all cameras.

    An env with cameras and without `state` means to be learned from what a real robot has: then `proprioception` stands for `state`, or,
    where there is none, what is named of the robot itself. Other quantities, such as an object's pose, may be known to a simulator alone.
    """
    space = getattr(space, "spaces", space)
    images = [name for name in space if is_image(space[name])]
    if not images or "state" in space:
        return ("state", "base_action", *images)
    robot = (
        ("proprioception",)
        if "proprioception" in space
        else tuple(name for name in _ROBOT_KEYS if name in space)
    )
    return (*robot, "base_action", *images)


class ObsVector:
    """Joins named observations into one float vector [B, O], in the order of `keys`; O is 0 where there are none.

    `space` gives each name's shape without the batch: a `gymnasium.spaces.Dict` of one world's observation, or a mapping of
    names to shapes. Raises `UnknownNameError` for a name it does not hold and `ConfigError` for images, which `Perception` encodes.
    """

    def __init__(self, keys: Sequence[str], space: ObsSpace):
        self.keys = tuple(keys)
        space = getattr(space, "spaces", space)  # `in` of a Dict space asks for whole observations
        self.size = 0
        for key in self.keys:
            if key not in space:
                _refuse_images_alone(key, space)
                raise UnknownNameError("observation", key, space)
            entry: Any = space[key]
            shape = getattr(entry, "shape", entry)
            if is_image(entry):
                raise ConfigError(
                    f"observation {key!r} {tuple(shape)} is an image, and this learner sees vectors alone: take it out of --obs-keys, "
                    "or choose --learner ppo"
                )
            self.size += math.prod(shape)

    def __call__(self, obs: Obs, device: torch.device, out: Tensor | None = None) -> Tensor:
        """The vector [B, O] float32 on `device`, written into `out` where given."""
        parts = []
        for key in self.keys:
            if key not in obs:
                raise UnknownNameError("observation", key, obs)
            parts.append(obs[key].to(device, torch.float32).flatten(1))
        if not parts:
            return torch.zeros(len(next(iter(obs.values()))), 0, device=device) if out is None else out
        return torch.cat(parts, 1, out=out)


def _refuse_images_alone(key: str, space: Mapping[str, Any]) -> None:
    """Where the env gives images in place of `state`, the name alone would not say what is amiss."""
    images = [name for name in space if is_image(space[name])]
    if key == "state" and images:
        raise ConfigError(
            f"there is no `state`, but images ({', '.join(images)}): use --obs-mode rgb+state, or name what is to be seen in --obs-keys "
            "(images are for --learner ppo, which without --obs-keys sees what there is)"
        )


class UninitializedLinear(nn.Linear):
    """A linear layer without initial values, so that none are drawn from torch's global generator.

    `torch.nn.utils.skip_init` does the same, but imports SymPy and symbolic shapes first (half a second).
    """

    def reset_parameters(self) -> None:
        """Leave the parameters as they were allocated."""


class MLP(nn.Module):
    """Linear layers with an activation between them. Weights are orthogonal (gain √2), biases zero, the last layer all zero.

    Source: Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks", 2014. Draws come
    from `generator` (CPU), never from torch's global one.
    """

    def __init__(self, sizes: Sequence[int], activation: str, generator: torch.Generator):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
        self.activation = ACTIVATIONS[activation]
        layers = [UninitializedLinear(n, m) for n, m in itertools.pairwise(sizes)]
        for layer in layers[:-1]:
            nn.init.orthogonal_(layer.weight, math.sqrt(2.0), generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        self.layers = nn.ModuleList(layers)
        self._hidden, self._last = tuple(layers[:-1]), layers[-1]  # a ModuleList is slow to slice

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._hidden:
            x = self.activation(F.linear(x, layer.weight, layer.bias))
        return F.linear(x, self._last.weight, self._last.bias)


class Perception(nn.Module):
    """What a network sees of named observations: a vector, normalised, and features of images beside it.

    Args:
        keys: names of vectors and cameras.
        space: see `ObsVector`.
        normalize: keep running statistics of the vector, to normalise it by; images have none.
        image_features: see `ImageEncoder`.
        generator: what the encoder's weights are drawn from (CPU).
        device: where it computes.
    """

    def __init__(
        self,
        keys: Sequence[str],
        space: ObsSpace,
        normalize: bool,
        image_features: int,
        generator: torch.Generator,
        device: torch.device,
    ):
        super().__init__()
        self.device = device
        entries: Mapping[str, Any] = getattr(space, "spaces", space)
        self.image_keys = tuple(key for key in keys if is_image(entries.get(key)))
        self.obs_vector = ObsVector([key for key in keys if key not in self.image_keys], space)
        self.normalizer = (
            RunningMeanStd((self.obs_vector.size,)) if normalize and self.obs_vector.size else None
        )
        shapes = {key: entries[key].shape for key in self.image_keys}
        self.encoder = ImageEncoder(shapes, image_features, generator) if shapes else None
        self.num_features = self.obs_vector.size + (self.encoder.size if self.encoder is not None else 0)
        self.to(device)

    def normalize(self, vector: Tensor) -> Tensor:
        """Observation vectors [..., O] as the networks see them."""
        return self.normalizer(vector) if self.normalizer is not None else vector

    def images(self, obs: Obs) -> dict[str, Tensor]:
        """The images [B, H, W, C] uint8 that it sees, by name, on its device."""
        return images_of(obs, self.image_keys, self.device)

    def features(self, vector: Tensor, images: Mapping[str, Tensor]) -> Tensor:
        """What a network takes, [b, num_features]: normalised observation vectors [b, O], and the features of `images` [b, H, W, C]."""
        if self.encoder is None:
            return vector
        return torch.cat([vector, self.encoder([images[key] for key in self.image_keys])], -1)


def images_of(obs: Obs, keys: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """The named images of an observation on `device`. Raises `UnknownNameError`."""
    for key in keys:
        if key not in obs:
            raise UnknownNameError("observation", key, obs)
    return {key: obs[key].to(device) for key in keys}


class ResidualPolicy(Perception):
    """The Gaussian residual policy: what acting needs, in training and alone.

    The mean is tanh of an MLP of what it perceives; the standard deviation does not depend on it. A fresh one has a mean
    of exactly 0. Executed actions are clipped to [-1, 1], as in Stable-Baselines3; log-probabilities are of the unclipped ones.
    An unbounded mean would drift beyond the clip, where noise changes nothing any more and learning stops.
    """

    def __init__(
        self,
        obs_keys: Sequence[str],
        obs_space: ObsSpace,
        action_dim: int,
        hidden_sizes: Sequence[int],
        activation: str,
        init_std: float,
        normalize_obs: bool,
        image_features: int,
        generator: torch.Generator,
        device: torch.device,
    ):
        super().__init__(obs_keys, obs_space, normalize_obs, image_features, generator, device)
        self.actor = MLP((self.num_features, *hidden_sizes, action_dim), activation, generator)
        self.log_std = nn.Parameter(torch.full((action_dim,), math.log(init_std)))
        self.to(device)

    def mean(self, features: Tensor) -> Tensor:
        """Mean [..., A] in [-1, 1] of the action, for what `features` gives [..., num_features]."""
        return self.actor(features).tanh()

    def mean_of(self, obs: Obs, images: Mapping[str, Tensor]) -> Tensor:
        """Mean [B, A] of the action for the vectors in `obs` and for `images`."""
        vector = self.obs_vector(obs, self.device).to(self.log_std.dtype)
        return self.mean(self.features(self.normalize(vector), images))

    @torch.no_grad()
    def act(self, obs: Obs) -> Tensor:
        """The deterministic residual action [B, A] in [-1, 1]."""
        return self.mean_of(obs, self.images(obs))
