"""Ensembles of critics with batched computation, and the normalisation of their targets (PopArt)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residual_rl.errors import ConfigError
from residual_rl.learners.common.networks import ACTIVATIONS


class Critics(nn.Module):
    """N MLPs with stacked weights, computed by one batched matrix product per layer.

    Hidden weights are orthogonal (gain √2) and biases zero, with independent weights for each critic. The
    last layer is orthogonal with gain `output_init`. With `layer_norm`, hidden layers are normalised before
    their activation, without learned gain and offset, which the neighbouring weights can represent.

    Source: layer normalisation in critics as in Ball et al., "Efficient Online Reinforcement Learning with
    Offline Data", 2023.

    Args:
        num: N.
        sizes: sizes of the input, the hidden layers and the output.
        activation: a name in `networks.ACTIVATIONS`.
        layer_norm: normalise hidden layers.
        output_init: gain of the last layer; 0 initialises it to zero.
        generator: generator of the weights (CPU).
    """

    def __init__(
        self,
        num: int,
        sizes: Sequence[int],
        activation: str,
        layer_norm: bool,
        output_init: float,
        generator: torch.Generator,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
        self.num = num
        self.layer_norm = layer_norm
        self.activation = ACTIVATIONS[activation]
        pairs = list(itertools.pairwise(sizes))
        gains = [math.sqrt(2.0)] * (len(pairs) - 1) + [output_init]
        weights = [_orthogonal(num, n, m, gain, generator) for (n, m), gain in zip(pairs, gains, strict=True)]
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(torch.zeros(num, 1, m) for _, m in pairs)

    def forward(self, x: Tensor, critic_ids: Tensor | None = None) -> Tensor:
        """Values [N, b] of the inputs `x` [b, I], or [M, b] of the critics `critic_ids` [M] (int64) only."""
        weights, biases = list(self.weights), list(self.biases)
        if critic_ids is not None:
            weights = [weight.index_select(0, critic_ids) for weight in weights]
            biases = [bias.index_select(0, critic_ids) for bias in biases]
        h = x.expand(len(weights[0]), *x.shape)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            h = torch.baddbmm(bias, h, weight)
            if self.layer_norm:
                h = F.layer_norm(h, h.shape[-1:])
            h = self.activation(h)
        return torch.baddbmm(biases[-1], h, weights[-1]).squeeze(-1)


def _orthogonal(num: int, inputs: int, outputs: int, gain: float, generator: torch.Generator) -> Tensor:
    weights = torch.zeros(num, inputs, outputs)
    if gain > 0.0:
        for weight in weights:
            nn.init.orthogonal_(weight, gain, generator=generator)
    return weights


class PopArt(nn.Module):
    """Normalises the critics' targets by their running mean and standard deviation.

    When the statistics change, the last layers of the critics are rescaled such that no value changes. The
    statistics are exponential moving averages, and plain averages during the first 1 / `rate` batches.

    Source: PopArt, van Hasselt et al., "Learning values across many orders of magnitude", 2016.

    Args:
        enabled: if false, outputs are values (mean 0 and standard deviation 1).
    """

    mean: Tensor
    count: Tensor
    std: Tensor

    rate = 3e-4
    min_std = 1e-3

    def __init__(self, enabled: bool):
        super().__init__()
        self.enabled = enabled
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("count", torch.zeros(()))

    def to_value(self, output: Tensor) -> Tensor:
        """Convert the critics' outputs to values."""
        return self.mean + self.std * output if self.enabled else output

    def to_output(self, value: Tensor) -> Tensor:
        """Convert values to the critics' outputs."""
        return (value - self.mean) / self.std if self.enabled else value

    @torch.no_grad()
    def update(self, target: Tensor, *critics: Critics) -> None:
        """Update the statistics with a batch of targets [b], and rescale the critics. Non-finite targets are
        ignored."""
        if not self.enabled:
            return
        target = torch.where(target.isfinite(), target, self.mean)
        mean = self.mean.clone()
        std = self.std.clone()
        self.count.add_(1.0)
        rate = (1.0 / self.count).clamp(min=self.rate)
        # Merge the variances around the means: in float32, E[x²] - E[x]² of large targets is mostly rounding
        batch_var, batch_mean = torch.var_mean(target, correction=0)
        delta = batch_mean - mean
        self.mean.add_(rate * delta)
        var = (1.0 - rate) * (std.square() + rate * delta.square()) + rate * batch_var
        self.std.copy_(var.clamp(min=self.min_std**2).sqrt())
        for ensemble in critics:
            ensemble.weights[-1].mul_(std / self.std)
            ensemble.biases[-1].mul_(std).add_(mean - self.mean).div_(self.std)
