"""Exponential moving averages of a network's weights: the deployed actor, and target networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from residual_rl.errors import CheckpointError
from residual_rl.types import State

MAX_DECAY = 0.9999
_Tensors = list[Tensor] | tuple[Tensor, ...]


class ActorEMA:
    """An average of a network's weights whose decay grows with the step, so that early weights are soon
    forgotten.

    Source: the power schedule of Diffusion Policy (Chi et al., 2023). After step t, counted from 0, the decay
    is 1 − (1 + t)^−power, at most 0.9999. After the first step it is 0: the average equals the weights.

    Args:
        network: the network that is trained.
        power: the exponent of the schedule.
    """

    def __init__(self, network: nn.Module, power: float):
        self._network = network
        self._power = power
        self._decay = 0.0
        self._average = AveragedModel(network, multi_avg_fn=self._update_weights).requires_grad_(False)
        self._average.n_averaged.fill_(1)  # AveragedModel copies the weights at 0

    @property
    def module(self) -> Any:
        """A copy of the network with the averaged weights, which `update` changes in place."""
        return self._average.module

    @property
    def weights(self) -> State:
        """The averaged weights by name, not copied."""
        return {name: parameter.data for name, parameter in self.module.named_parameters()}

    def decay(self, step: int) -> float:
        """The decay after `step` (from 0)."""
        return min(1.0 - (1.0 + step) ** -self._power, MAX_DECAY)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after `step` (from 0)."""
        self._decay = self.decay(step)
        self._average.update_parameters(self._network)

    @torch.no_grad()
    def restart(self) -> None:
        """Set the average to the network's weights."""
        self._average.n_averaged.zero_()
        self._average.update_parameters(self._network)

    def state_dict(self) -> State:
        """A copy of the averaged weights by name."""
        return {name: tensor.clone() for name, tensor in self.weights.items()}

    def load_state_dict(self, state: State) -> None:
        """Restore the result of `state_dict`. Raises `CheckpointError` where the names of the parameters
        differ."""
        weights = self.weights
        if state.keys() != weights.keys():
            raise CheckpointError(
                f"the averaged weights have other parameters: {sorted(state.keys() ^ weights.keys())}"
            )
        for name, tensor in weights.items():
            tensor.copy_(state[name])

    def _update_weights(self, average: _Tensors, current: _Tensors, _: Tensor | int) -> None:
        """Called by AveragedModel; its own count of updates would be a tensor on the device."""
        torch._foreach_lerp_(average, current, 1.0 - self._decay)


@torch.no_grad()
def soft_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Polyak averaging: target ← target + tau · (source − target), for all parameters."""
    torch._foreach_lerp_([p.data for p in target.parameters()], [p.data for p in source.parameters()], tau)
