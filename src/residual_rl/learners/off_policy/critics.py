"""Ensembles of critics, computed together, and targets in units of their own spread."""

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
    """N MLPs with stacked weights: one batched product a layer, however many there are.

    Hidden weights are orthogonal (gain √2) and biases zero, drawn from `generator` (CPU) for each member anew; the last layer is
    orthogonal with gain `output_init`, or zero. With `layer_norm` each hidden layer is normalised before its activation, without learned
    gain and offset: the weights around it can stand for them.

    Source: layer normalisation in critics as in Ball et al., "Efficient Online Reinforcement Learning with Offline Data", 2023.

    Args:
        num: N.
        sizes: of the input, the hidden layers and the output.
        activation: a name in `networks.ACTIVATIONS`.
        layer_norm: normalise hidden layers.
        output_init: gain of the last layer.
        generator: what the weights are drawn from.
    """

    def __init__(self, num: int, sizes: Sequence[int], activation: str, layer_norm: bool, output_init: float, generator: torch.Generator):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
        self.num, self.layer_norm, self.activation = num, layer_norm, ACTIVATIONS[activation]
        pairs = list(itertools.pairwise(sizes))
        gains = [math.sqrt(2.0)] * (len(pairs) - 1) + [output_init]
        weights = [_orthogonal(num, n, m, gain, generator) for (n, m), gain in zip(pairs, gains, strict=True)]
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(torch.zeros(num, 1, m) for _, m in pairs)

    def forward(self, x: Tensor, members: Tensor | None = None) -> Tensor:
        """Values [N, b] of the inputs `x` [b, I]; with `members` [M] (int64) those of these critics alone, [M, b]."""
        weights, biases = list(self.weights), list(self.biases)
        if members is not None:
            weights = [weight.index_select(0, members) for weight in weights]
            biases = [bias.index_select(0, members) for bias in biases]
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


class TargetScale(nn.Module):
    """Running mean and standard deviation of the critics' targets, in which the critics' outputs are; without `enabled`, 0 and 1.

    When the statistics move, the last layers move with them, so that no value changes. They are exponential averages, of all targets
    alike until there are 1 / `rate` batches of them.

    Source: PopArt, van Hasselt et al., "Learning values across many orders of magnitude", 2016.
    """

    mean: Tensor
    mean_square: Tensor
    count: Tensor
    std: Tensor

    rate = 3e-4
    min_std = 1e-3

    def __init__(self, enabled: bool):
        super().__init__()
        self.enabled = enabled
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("mean_square", torch.ones(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("count", torch.zeros(()))

    def to_value(self, output: Tensor) -> Tensor:
        """Values of the critics' outputs."""
        return self.mean + self.std * output if self.enabled else output

    def to_output(self, value: Tensor) -> Tensor:
        """The outputs that stand for values."""
        return (value - self.mean) / self.std if self.enabled else value

    @torch.no_grad()
    def take_in(self, target: Tensor, *critics: Critics) -> None:
        """Move the statistics by a batch of targets [b], and the critics with them. Targets that are not finite are left out."""
        if not self.enabled:
            return
        target = torch.where(target.isfinite(), target, self.mean)
        mean, std = self.mean.clone(), self.std.clone()
        self.count.add_(1.0)
        rate = (1.0 / self.count).clamp(min=self.rate)
        self.mean.lerp_(target.mean(), rate)
        self.mean_square.lerp_(target.square().mean(), rate)
        self.std.copy_((self.mean_square - self.mean.square()).clamp(min=self.min_std**2).sqrt())
        for ensemble in critics:
            ensemble.weights[-1].mul_(std / self.std)
            ensemble.biases[-1].mul_(std).add_(mean - self.mean).div_(self.std)
