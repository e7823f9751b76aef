"""Networks of the learners: perception of named observations, MLPs, and PPO's residual policy."""

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
    # within 2e-7 of torch.tanh, in a third of its time on a CPU
    return x.mul_(2.0).sigmoid_().mul(2.0).sub_(1.0)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": _tanh,
    "relu": F.relu,
    "elu": F.elu,
    "silu": F.silu,
}
"""Activations by name. They may modify their argument in place."""


_ROBOT_KEYS = ("joint_position", "joint_velocity", "joint_target", "ee_position", "tcp_pose")
"""Names of proprioceptive observations that envs share."""


def default_obs_keys(space: ObsSpace) -> tuple[str, ...]:
    """The default observations of a policy: `state`, the base action and all cameras.

    An env with cameras but without `state` is intended for policies that read only what a real robot can
    measure. There, `proprioception` replaces `state`, or, if it is missing, all proprioceptive observations
    by name. Other quantities, such as an object's pose, may be available in simulation only and are left out.
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
    """Concatenates named observations into one float vector [B, O], in the order of `keys`. O is 0 without
    keys.

    Args:
        keys: names of the observations.
        space: a `gymnasium.spaces.Dict` of a single env, or a mapping of names to shapes without the batch.

    Raises:
        UnknownNameError: a key that is not in `space`.
        ConfigError: a key that names an image; `Perception` encodes those.
    """

    def __init__(self, keys: Sequence[str], space: ObsSpace):
        self.keys = tuple(keys)
        space = getattr(space, "spaces", space)  # `in` on a Dict space tests whether it contains a sample
        self.size = 0
        for key in self.keys:
            if key not in space:
                _refuse_images_without_state(key, space)
                raise UnknownNameError("observation", key, space)
            entry: Any = space[key]
            shape = getattr(entry, "shape", entry)
            if is_image(entry):
                raise ConfigError(
                    f"observation {key!r} {tuple(shape)} is an image, but this learner supports vectors only:"
                    " remove it from --obs-keys, or choose --learner ppo"
                )
            self.size += math.prod(shape)

    def __call__(self, obs: Obs, device: torch.device, out: Tensor | None = None) -> Tensor:
        """The vector [B, O] float32 on `device`, written into `out` if given."""
        parts = []
        for key in self.keys:
            if key not in obs:
                raise UnknownNameError("observation", key, obs)
            parts.append(obs[key].to(device, torch.float32).flatten(1))
        if not parts:
            return torch.zeros(len(next(iter(obs.values()))), 0, device=device) if out is None else out
        return torch.cat(parts, 1, out=out)


def _refuse_images_without_state(key: str, space: Mapping[str, Any]) -> None:
    """Raise a more helpful error if `state` is missing because the env has images instead."""
    images = [name for name in space if is_image(space[name])]
    if key == "state" and images:
        raise ConfigError(
            f"the env has no `state`, but images ({', '.join(images)}): use --obs-mode rgb+state, or train"
            " with --learner ppo, the only one that learns from images, or name vectors in --obs-keys"
        )


class UninitializedLinear(nn.Linear):
    """A linear layer without initial values, so that none are drawn from torch's global generator.

    `torch.nn.utils.skip_init` does the same, but imports SymPy and symbolic shapes first (half a second).
    """

    def reset_parameters(self) -> None:
        """Leave the parameters as they were allocated."""


class MLP(nn.Module):
    """Linear layers with an activation between them. Weights are orthogonal (gain √2) and biases zero; the
    last layer is zero.

    Source: Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks", 2014.

    Args:
        sizes: sizes of the input, the hidden layers and the output.
        activation: a name in `ACTIVATIONS`.
        generator: generator of the weights (CPU), instead of torch's global one.
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
        self._hidden = tuple(layers[:-1])  # slicing a ModuleList is slow
        self._last = layers[-1]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._hidden:
            x = self.activation(F.linear(x, layer.weight, layer.bias))
        return F.linear(x, self._last.weight, self._last.bias)


class Perception(nn.Module):
    """Computes the input of a network from named observations: a normalised vector and the features of
    images.

    Args:
        keys: names of vectors and cameras.
        space: see `ObsVector`.
        normalize: normalise the vector by running statistics.
        image_features: features per image encoder; see `ImageEncoder`.
        generator: generator of the encoder's weights (CPU).
        device: device to compute on.
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
        """Normalise observation vectors [..., O]."""
        return self.normalizer(vector) if self.normalizer is not None else vector

    def images(self, obs: Obs) -> dict[str, Tensor]:
        """The images [B, H, W, C] uint8 of its cameras by name, on its device."""
        return images_of(obs, self.image_keys, self.device)

    def features(self, vector: Tensor, images: Mapping[str, Tensor]) -> Tensor:
        """The network input [b, num_features]: the normalised `vector` [b, O] and the features of `images`
        [b, H, W, C]."""
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
    """A Gaussian residual policy, for training and deployment.

    The mean is the tanh of an MLP of the features; the standard deviation does not depend on the observation.
    At initialisation the mean is exactly 0. Executed actions are clipped to [-1, 1], as in Stable-Baselines3,
    while log-probabilities refer to the unclipped actions. The tanh keeps the mean inside the clip range;
    beyond it, noise would have no effect and learning would stop.
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
        """Mean [..., A] in [-1, 1] of the action for the output of `features`, [..., num_features]."""
        return self.actor(features).tanh()

    def mean_of(self, obs: Obs, images: Mapping[str, Tensor]) -> Tensor:
        """Mean [B, A] of the action for the vectors in `obs` and for `images`."""
        vector = self.obs_vector(obs, self.device).to(self.log_std.dtype)
        return self.mean(self.features(self.normalize(vector), images))

    @torch.no_grad()
    def act(self, obs: Obs) -> Tensor:
        """The deterministic residual action [B, A] in [-1, 1]."""
        return self.mean_of(obs, self.images(obs))
