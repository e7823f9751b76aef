"""Exponential moving averages of a network's weights: those that are deployed, and target networks."""

from __future__ import annotations

import torch
from torch import nn

from residual_rl.errors import CheckpointError
from residual_rl.types import State

MAX_DECAY = 0.9999


class Ema:
    """Averages of the parameters of `network`. The decay grows with the steps, so that the first weights are soon forgotten.

    Source: the power schedule that Diffusion Policy uses (Chi et al., 2023): after step t, counted from 0, decay = 1 − (1 + t)^−power,
    at most 0.9999. After the first step it is 0: the average is the weights.
    """

    def __init__(self, network: nn.Module, power: float):
        self._parameters = dict(network.named_parameters())
        self._power = power
        self.weights = {name: p.detach().clone() for name, p in self._parameters.items()}
        """By name."""

    def decay(self, step: int) -> float:
        """The decay after `step` (from 0)."""
        return min(1.0 - (1.0 + step) ** -self._power, MAX_DECAY)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` (from 0)."""
        current = [p.detach() for p in self._parameters.values()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1.0 - self.decay(step))

    @torch.no_grad()
    def restart(self) -> None:
        """The average is the weights now."""
        torch._foreach_copy_(list(self.weights.values()), [p.detach() for p in self._parameters.values()])

    def state_dict(self) -> State:
        return {name: tensor.clone() for name, tensor in self.weights.items()}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave. Raises `CheckpointError` where it is of other parameters."""
        if state.keys() != self.weights.keys():
            raise CheckpointError(f"the averaged weights are of other parameters: {sorted(state.keys() ^ self.weights.keys())}")
        for name, tensor in self.weights.items():
            tensor.copy_(state[name])


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Move the parameters of `target` by the share `tau` of the way to those of `source`."""
    torch._foreach_lerp_([p.data for p in target.parameters()], [p.data for p in source.parameters()], tau)
