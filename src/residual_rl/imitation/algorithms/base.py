"""What the algorithms have in common: a loss on windows, and actions from observations and noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Generator, Tensor, nn

Network = Callable[..., Tensor]


class Algorithm(ABC):
    """How a network is trained on windows, and asked for actions. It holds settings only; observations and actions are normalised.

    Shapes: b windows, D = H · O observation, K chunk, A action.
    """

    stochastic: ClassVar[bool] = True
    """Whether actions depend on noise."""

    @abstractmethod
    def make_network(self, obs_dim: int, chunk_size: int, action_dim: int) -> nn.Module:
        """A fresh network for observations of `obs_dim` = D, its weights drawn from torch's global generator."""

    @abstractmethod
    def loss(self, network: Network, obs: Tensor, actions: Tensor, valid: Tensor, generator: Generator) -> Tensor:
        """The loss, a scalar, of windows `obs` [b, D], `actions` [b, K, A], of which those count that are `valid` [b, K]."""

    @abstractmethod
    def sample(self, network: Network, obs: Tensor, noise: Tensor, sampling_steps: int) -> Tensor:
        """Actions [b, K, A] for `obs` [b, D] and standard normal `noise` [b, K, A]."""


def masked_mse(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over the entries [b, K, A] whose steps are `valid` [b, K]; in float32 whatever the prediction is."""
    error = (prediction.float() - target.float()).square().mean(-1)
    return (error * valid).sum() / valid.sum().clamp(min=1)
