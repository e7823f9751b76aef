"""Exploration noise that is correlated in time, independently for each env."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Noise(NamedTuple):
    """One sample: `value = shift + spread * (white noise)`, where `shift` and `spread` follow from the
    earlier samples."""

    value: Tensor
    """[B, A], marginally N(0, 1)."""
    shift: Tensor
    """[B, A]: conditional mean, given the earlier noise of the env."""
    spread: Tensor
    """[B, 1]: conditional standard deviation."""


class CorrelatedNoise(nn.Module):
    """First-order autoregressive noise of stationary unit variance: `eps[t] = rho * eps[t-1] + sqrt(1 -
    rho^2) * white[t]`.

    At the start of an episode the noise is drawn from N(0, 1), so that episodes are independent. With
    `correlation` 0 the noise is white. It has its own generator. Compare Hollenstein et al., "Colored Noise
    in PPO", AAAI 2024, who shape the spectrum of the noise instead.

    Args:
        num_envs: B.
        action_dim: A.
        correlation: rho, in [0, 1).
        seed: seed of the generator.
        device: device of the generator and the samples.
    """

    previous: Tensor
    rho: Tensor
    _zero: Tensor
    _one: Tensor

    def __init__(self, num_envs: int, action_dim: int, correlation: float, seed: int, device: torch.device):
        super().__init__()
        self.correlation = correlation
        self.generator = torch.Generator(device).manual_seed(seed)
        self.register_buffer("previous", torch.zeros(num_envs, action_dim, device=device))
        # 0 in envs at the start of an episode
        self.register_buffer("rho", torch.zeros(num_envs, 1, device=device))
        self.register_buffer("_zero", torch.zeros(num_envs, action_dim, device=device), persistent=False)
        self.register_buffer("_one", torch.ones(num_envs, 1, device=device), persistent=False)

    def sample(self) -> Noise:
        """Draw the noise of all envs for the next step."""
        white = torch.randn(self.previous.shape, generator=self.generator, device=self.previous.device)
        if self.correlation == 0.0:
            return Noise(white, self._zero, self._one)
        shift = self.rho * self.previous
        spread = (1.0 - self.rho.square()).sqrt_()
        value = torch.addcmul(shift, spread, white)
        self.previous.copy_(value)
        self.rho.fill_(self.correlation)
        return Noise(value, shift, spread)

    def restart(self, ended: Tensor) -> None:
        """Forget the earlier noise of the envs where `ended` [B] (bool) is true."""
        self.rho.masked_fill_(ended.unsqueeze(1), 0.0)
