"""Behaviour cloning: an MLP from observations to a chunk of actions, trained by mean squared error."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Generator, Tensor, nn

from residual_rl.imitation.algorithms.base import Algorithm, Network, masked_mse
from residual_rl.imitation.networks.unet import ChunkMLP


class BC(Algorithm):
    """Behaviour cloning. It predicts the mean of the demonstrated actions, which can be wrong for multimodal
    data.

    Source: Pomerleau, "ALVINN: an autonomous land vehicle in a neural network", 1988.
    """

    stochastic = False

    def __init__(self, hidden_sizes: Sequence[int]):
        self.hidden_sizes = tuple(hidden_sizes)

    def make_network(self, obs_dim: int, chunk_size: int, action_dim: int) -> nn.Module:
        return ChunkMLP(obs_dim, chunk_size, action_dim, self.hidden_sizes)

    def loss(
        self,
        network: Network,
        obs: Tensor,
        actions: Tensor,
        valid: Tensor,
        generator: Generator,  # noqa: ARG002
    ) -> Tensor:
        return masked_mse(network(obs), actions, valid)

    def sample(self, network: Network, obs: Tensor, noise: Tensor, sampling_steps: int) -> Tensor:  # noqa: ARG002
        return network(obs)
