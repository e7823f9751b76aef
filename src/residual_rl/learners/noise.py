"""Exploration noise that is correlated in time, per world."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from residual_rl.types import State


class Noise(NamedTuple):
    """One draw: `value = shift + spread * (white noise)`, where `shift` and `spread` were known before the draw."""

    value: Tensor
    """[B, A], marginally N(0, 1)."""
    shift: Tensor
    """[B, A]: what the worlds' earlier noise predicts."""
    spread: Tensor
    """[B, 1]: standard deviation of the rest."""


class CorrelatedNoise:
    """First-order autoregressive noise of stationary unit variance: `eps[t] = rho * eps[t-1] + sqrt(1 - rho^2) * white[t]`.

    A world whose episode ended starts anew from N(0, 1), so that nothing of one episode reaches the next. With `correlation`
    0 it is white. It draws from a generator of its own. Compare Hollenstein et al., "Colored Noise in PPO", AAAI 2024,
    who shape the noise's spectrum instead.
    """

    def __init__(self, num_envs: int, action_dim: int, correlation: float, seed: int, device: torch.device):
        self.correlation = correlation
        self.generator = torch.Generator(device).manual_seed(seed)
        self._previous = torch.zeros(num_envs, action_dim, device=device)
        self._rho = torch.zeros(num_envs, 1, device=device)  # 0 where the world starts anew at the next draw
        self._no_shift = torch.zeros(num_envs, action_dim, device=device)
        self._unit_spread = torch.ones(num_envs, 1, device=device)

    def sample(self) -> Noise:
        """The noise of the next step of all worlds."""
        white = torch.randn(self._previous.shape, generator=self.generator, device=self._previous.device)
        if self.correlation == 0.0:
            return Noise(white, self._no_shift, self._unit_spread)
        shift = self._rho * self._previous
        spread = (1.0 - self._rho.square()).sqrt_()
        self._previous = torch.addcmul(shift, spread, white)
        self._rho.fill_(self.correlation)
        return Noise(self._previous, shift, spread)

    def restart(self, ended: Tensor) -> None:
        """Start anew in the worlds where `ended` [B] (bool) is true."""
        self._rho.masked_fill_(ended.unsqueeze(1), 0.0)

    def state_dict(self) -> State:
        return {"previous": self._previous.clone(), "rho": self._rho.clone(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        self._previous.copy_(state["previous"])
        self._rho.copy_(state["rho"])
        self.generator.set_state(state["generator"].cpu())
