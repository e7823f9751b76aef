"""Exploration noise that is correlated in time, per world."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Noise(NamedTuple):
    """One draw: `value = shift + spread * (white noise)`, where `shift` and `spread` were known before the draw."""

    value: Tensor
    """[B, A], marginally N(0, 1)."""
    shift: Tensor
    """[B, A]: what the worlds' earlier noise predicts."""
    spread: Tensor
    """[B, 1]: standard deviation of the rest."""


class CorrelatedNoise(nn.Module):
    """First-order autoregressive noise of stationary unit variance: `eps[t] = rho * eps[t-1] + sqrt(1 - rho^2) * white[t]`.

    A world whose episode ended starts anew from N(0, 1), so that nothing of one episode reaches the next. With `correlation`
    0 it is white. It draws from a generator of its own. Compare Hollenstein et al., "Colored Noise in PPO", AAAI 2024,
    who shape the noise's spectrum instead.
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
        self.register_buffer(
            "rho", torch.zeros(num_envs, 1, device=device)
        )  # 0 where the next draw starts anew
        self.register_buffer("_zero", torch.zeros(num_envs, action_dim, device=device), persistent=False)
        self.register_buffer("_one", torch.ones(num_envs, 1, device=device), persistent=False)

    def sample(self) -> Noise:
        """The noise of the next step of all worlds."""
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
        """Start anew in the worlds where `ended` [B] (bool) is true."""
        self.rho.masked_fill_(ended.unsqueeze(1), 0.0)
