"""The interface of imitation algorithms: a loss on windows, and a sampler of actions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Generator, Tensor, nn

Network = Callable[..., Tensor]


class Algorithm(ABC):
    """The loss and the sampler of a network. An algorithm has settings but no state.

    Observations and actions are normalised. Shapes: b windows, D = H · O observation, K chunk, A action.
    """

    stochastic: ClassVar[bool] = True
    """Whether actions depend on noise."""

    @abstractmethod
    def make_network(self, obs_dim: int, chunk_size: int, action_dim: int) -> nn.Module:
        """Construct the network for observations of size `obs_dim` = D, with weights from torch's global
        generator."""

    @abstractmethod
    def loss(
        self, network: Network, obs: Tensor, actions: Tensor, valid: Tensor, generator: Generator
    ) -> Tensor:
        """The scalar loss on `obs` [b, D] and `actions` [b, K, A]; only the steps that are `valid` [b, K]
        count."""

    @abstractmethod
    def sample(self, network: Network, obs: Tensor, noise: Tensor, sampling_steps: int) -> Tensor:
        """Actions [b, K, A] for `obs` [b, D] and standard normal `noise` [b, K, A]."""


def masked_mse(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over the entries [b, K, A] whose steps are `valid` [b, K], computed in float32."""
    error = (prediction.float() - target.float()).square().mean(-1)
    return (error * valid).sum() / valid.sum().clamp(min=1)
