"""Flow matching: a network predicts the velocity from noise to actions, which the sampler integrates by Euler
steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from residual_rl.imitation.algorithms.base import Algorithm, Network, masked_mse
from residual_rl.imitation.networks.conditional_unet import unet_of

TIME_SCALE = 100.0
"""The network's time input is 100 · t, the range that its time embedding is designed for."""


class Flow(Algorithm):
    """x_t = (1 − t) · noise + t · actions, with t uniform in [0, 1]; the network predicts d x_t / d t =
    actions − noise.

    Source: Lipman et al., "Flow matching for generative modeling", 2023; Liu et al., "Flow straight and fast:
    learning to generate and transfer data with rectified flow", 2023 (the 1-rectified flow, without its
    reflow).
    """

    def __init__(self, channels: Sequence[int], kernel_size: int, time_dim: int, layout: str = "own"):
        self.channels = tuple(channels)
        self.kernel_size = kernel_size
        self.time_dim = time_dim
        self._unet = unet_of(layout)

    def make_network(self, obs_dim: int, chunk_size: int, action_dim: int) -> nn.Module:
        return self._unet(chunk_size, action_dim, obs_dim, self.channels, self.kernel_size, self.time_dim)

    def loss(
        self, network: Network, obs: Tensor, actions: Tensor, valid: Tensor, generator: Generator
    ) -> Tensor:
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        time = torch.rand(len(actions), generator=generator, device=actions.device)
        moved = torch.lerp(noise, actions, time[:, None, None])
        return masked_mse(network(moved, TIME_SCALE * time, obs), actions - noise, valid)

    def sample(self, network: Network, obs: Tensor, noise: Tensor, sampling_steps: int) -> Tensor:
        x, step = noise, 1.0 / sampling_steps
        for i in range(sampling_steps):
            time = torch.full((len(x),), TIME_SCALE * i * step, dtype=x.dtype, device=x.device)
            x = x + step * network(x, time, obs)
        return x
