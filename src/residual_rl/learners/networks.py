"""Networks of the learners: MLPs on named observations, and the residual policy that acts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.learners.normalizers import RunningMeanStd
from residual_rl.types import Obs, State

if TYPE_CHECKING:
    from gymnasium.spaces import Dict

    ObsSpace = Dict | Mapping[str, tuple[int, ...]]


def _tanh(x: Tensor) -> Tensor:
    if x.is_cuda:
        return torch.tanh(x)
    return x.mul_(2.0).sigmoid_().mul(2.0).sub_(1.0)  # within 2e-7 of torch.tanh, and a third of its time on a CPU


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": _tanh, "relu": F.relu, "elu": F.elu, "silu": F.silu}
"""By name; they may overwrite what they are given."""


class ObsVector:
    """Joins named observations into one float vector [B, O], in the order of `keys`.

    `space` gives each name's shape without the batch: a `gymnasium.spaces.Dict` of one world's observation, or a mapping of
    names to shapes. Raises `UnknownNameError` for a name it does not hold and `ConfigError` for images: an encoder of them
    would stand here.
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
            if _is_image(entry):
                raise ConfigError(f"observation {key!r} {tuple(shape)} is an image; images need the RGB encoder: take it out of obs_keys")
            self.size += math.prod(shape)

    def __call__(self, obs: Obs, device: torch.device, out: Tensor | None = None) -> Tensor:
        """The vector [B, O] float32 on `device`, written into `out` where given."""
        parts = []
        for key in self.keys:
            if key not in obs:
                raise UnknownNameError("observation", key, obs)
            parts.append(obs[key].to(device, torch.float32).flatten(1))
        return torch.cat(parts, 1, out=out)


def _is_image(entry: Any) -> bool:
    return getattr(entry, "dtype", None) == "uint8"


def _refuse_images_alone(key: str, space: Mapping[str, Any]) -> None:
    """Where the env gives images in place of `state`, the name alone would not say what is amiss."""
    images = [name for name in space if _is_image(space[name])]
    if key == "state" and images:
        raise ConfigError(f"learning from images ({', '.join(images)}) is not there yet, and there is no `state`: use --obs-mode rgb+state")


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
        layers = [nn.utils.skip_init(nn.Linear, n, m) for n, m in itertools.pairwise(sizes)]
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


class ResidualPolicy(nn.Module):
    """The Gaussian residual policy: what acting needs, in training and alone.

    The mean is tanh of an MLP of the normalised observation; the standard deviation does not depend on it. A fresh one has a mean
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
        generator: torch.Generator,
        device: torch.device,
    ):
        super().__init__()
        self.device = device
        self.obs_vector = ObsVector(obs_keys, obs_space)
        self.normalizer = RunningMeanStd((self.obs_vector.size,)) if normalize_obs else None
        self.actor = MLP((self.obs_vector.size, *hidden_sizes, action_dim), activation, generator)
        self.log_std = nn.Parameter(torch.full((action_dim,), math.log(init_std)))
        self.to(device)

    def normalize(self, vector: Tensor) -> Tensor:
        """Observation vectors [..., O] as the networks see them."""
        return self.normalizer(vector) if self.normalizer is not None else vector

    def mean(self, vector: Tensor) -> Tensor:
        """Mean [..., A] in [-1, 1] of the action, for normalised observation vectors [..., O]."""
        return self.actor(vector).tanh()

    @torch.no_grad()
    def act(self, obs: Obs) -> Tensor:
        """The deterministic residual action [B, A] in [-1, 1]."""
        return self.mean(self.normalize(self.obs_vector(obs, self.device).to(self.log_std.dtype)))


def module_state(module: nn.Module) -> State:
    """Copies of a module's parameters and buffers by name."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def load_module_state(module: nn.Module, state: State, what: str) -> None:
    """Take back what `module_state` gave. Raises `CheckpointError`, changing nothing, where names or shapes differ."""
    own = module.state_dict()
    if own.keys() != state.keys():
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        raise CheckpointError(f"{what} does not fit its settings: missing {missing or 'nothing'}, unknown {extra or 'nothing'}")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise CheckpointError(f"{what}: {name} has shape {list(state[name].shape)}, the settings make it {list(tensor.shape)}")
    module.load_state_dict(state)
