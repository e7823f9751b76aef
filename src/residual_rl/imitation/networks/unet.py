"""Networks of imitation policies: an MLP, and a 1-D convolutional U-Net over a chunk of actions, conditioned
on observations and time.

Shapes: b batch, L steps of the chunk, C channels, D condition. Tensors of the U-Net are [b, L, C], channels
last.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residual_rl.errors import ConfigError

GROUPS = 8
"""Number of groups of the U-Net's group normalisation."""


class ChunkMLP(nn.Module):
    """Linear layers with LayerNorm and SiLU between them: [b, O] → [b, L, A]."""

    observing = ("layers.0.weight",)
    """Weights whose last columns (here: all) read the observations."""

    def __init__(self, input_dim: int, chunk_size: int, action_dim: int, hidden_sizes: Sequence[int]):
        super().__init__()
        self._shape = (chunk_size, action_dim)
        sizes = [input_dim, *hidden_sizes]
        layers: list[nn.Module] = []
        for n, m in itertools.pairwise(sizes):
            layers += [nn.Linear(n, m), nn.LayerNorm(m), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], chunk_size * action_dim))

    def forward(self, obs: Tensor) -> Tensor:
        out: Tensor = self.layers(obs)
        return out.unflatten(-1, self._shape)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """Convolution over the steps of `x` [b, L, C], padded with zeros: [b, ceil(L / stride), outputs].

    `weight` is [outputs, C, kernel_size] with an odd kernel size. In float64, for which torch has no fast
    convolution on a CPU, the result is a matrix product with the unfolded steps; this takes a quarter to two
    thirds of the time of torch's convolution.
    """
    size = weight.shape[-1]
    if x.dtype == torch.float64:
        x = F.pad(x, (0, 0, size // 2, size // 2)).unfold(1, size, stride).flatten(2)
        return F.linear(x, weight.flatten(1), bias)
    return F.conv1d(x.transpose(1, 2), weight, bias, stride, size // 2).transpose(1, 2)


class Conv(nn.Linear):
    """`convolve` as a layer, whose weight is a matrix [outputs, C · kernel_size]."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1):
        super().__init__(inputs * kernel_size, outputs)
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight.unflatten(1, (-1, self.kernel_size)), self.bias, self.stride)


class ConvBlock(nn.Module):
    """Convolution, group normalisation over steps and channels, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int):
        super().__init__()
        self.conv = Conv(inputs, outputs, kernel_size)
        self.norm = nn.GroupNorm(GROUPS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x).transpose(1, 2))).transpose(1, 2)


class FilmBlock(nn.Module):
    """Two convolution blocks with a skip connection around both. Between the two, each channel is scaled and
    shifted depending on the condition [b, D].

    Source: Perez et al., "FiLM: visual reasoning with a general conditioning layer", 2018.
    """

    def __init__(self, inputs: int, outputs: int, condition_dim: int, kernel_size: int):
        super().__init__()
        self.first = ConvBlock(inputs, outputs, kernel_size)
        self.second = ConvBlock(outputs, outputs, kernel_size)
        self.film = nn.Linear(condition_dim, 2 * outputs)
        self.around = nn.Linear(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, None].chunk(2, -1)
        out: Tensor = self.second(self.first(x) * (1.0 + scale) + shift)
        return out + self.around(x)


class FilmPair(nn.Module):
    """Two `FilmBlock`s in sequence with the same condition."""

    def __init__(self, inputs: int, outputs: int, condition_dim: int, kernel_size: int):
        super().__init__()
        self.first = FilmBlock(inputs, outputs, condition_dim, kernel_size)
        self.second = FilmBlock(outputs, outputs, condition_dim, kernel_size)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x, condition), condition)
        return out


class LinearDoubling(nn.Linear):
    """Two steps from each step: [b, L, C] → [b, 2 L, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).unflatten(-1, (2, -1)).flatten(1, 2)


class UNet(nn.Module):
    """Maps a chunk of actions [b, L, A], a time [b] and an observation vector [b, O] to [b, L, A].

    Each level of the encoder halves the number of steps and has `channels[i]` channels. Each level of the
    decoder also receives the output of the encoder's level.

    Source: the conditional U-Net of Chi et al., "Diffusion Policy", 2023, which is that of Janner et al.,
    "Planning with diffusion for flexible behavior synthesis", 2022. Deviations: the observations pass through
    two layers before they are concatenated with the time's embedding (in the source they are not embedded,
    and the activation distorts negative values); the number of steps is doubled by a linear layer with two
    outputs per step; and the activation is SiLU instead of Mish, which is similar but takes twice the time on
    a CPU.

    Args:
        chunk_size: L; divisible by 2 for each level but the last.
        action_dim: A.
        obs_dim: O.
        channels: channels of each level, divisible by 8.
        kernel_size: kernel size of the convolutions [steps], odd.
        time_dim: size of the embeddings of time and observations, even.
    """

    observing = ("obs_layers.0.weight",)
    """Weights whose last columns (here: all) read the observations."""

    def __init__(
        self,
        chunk_size: int,
        action_dim: int,
        obs_dim: int,
        channels: Sequence[int],
        kernel_size: int,
        time_dim: int,
    ):
        super().__init__()
        check_unet(chunk_size, channels, kernel_size, time_dim)
        self.time_dim = time_dim
        self.time_layers = nn.Sequential(
            nn.Linear(time_dim, 2 * time_dim), nn.SiLU(), nn.Linear(2 * time_dim, time_dim)
        )
        self.obs_layers = nn.Sequential(
            nn.Linear(obs_dim, 2 * time_dim), nn.SiLU(), nn.Linear(2 * time_dim, time_dim)
        )

        def pair(inputs: int, outputs: int) -> FilmPair:
            return FilmPair(inputs, outputs, 2 * time_dim, kernel_size)

        steps_up = list(itertools.pairwise(reversed(channels)))
        self.down = nn.ModuleList(pair(n, m) for n, m in itertools.pairwise((action_dim, *channels)))
        self.shrink = nn.ModuleList(Conv(n, n, 3, stride=2) for n in channels[:-1])
        self.middle = pair(channels[-1], channels[-1])
        self.up = nn.ModuleList(pair(2 * n, m) for n, m in steps_up)
        self.grow = nn.ModuleList(LinearDoubling(m, 2 * m) for _, m in steps_up)
        self.last = nn.Sequential(
            ConvBlock(channels[0], channels[0], kernel_size), nn.Linear(channels[0], action_dim)
        )

    def forward(self, x: Tensor, time: Tensor, obs: Tensor) -> Tensor:
        moment = self.time_layers(embedding(time, self.time_dim).to(obs.dtype))
        condition = F.silu(torch.cat([moment, self.obs_layers(obs)], 1))
        down = zip(self.down, [*self.shrink, _unchanged], strict=True)
        x = encode_decode(x, condition, down, [self.middle], zip(self.up, self.grow, strict=True))
        out: Tensor = self.last(x)
        return out


def encode_decode(
    x: Tensor,
    condition: Tensor,
    down: Iterable[Iterable[Any]],
    middle: Iterable[Any],
    up: Iterable[Iterable[Any]],
) -> Tensor:
    """Pass `x` [b, L, C] through the levels of a U-Net.

    Args:
        x: input of the first level.
        condition: [b, D], an input of every block.
        down: levels of the encoder: their blocks, followed by the layer that halves the number of steps.
        middle: blocks between encoder and decoder.
        up: levels of the decoder: their blocks, followed by the layer that doubles the number of steps.
    """
    skipped = []
    for *blocks, resize in down:
        for block in blocks:
            x = block(x, condition)
        skipped.append(x)
        x = resize(x)
    for block in middle:
        x = block(x, condition)
    for *blocks, resize in up:
        x = torch.cat([x, skipped.pop()], -1)
        for block in blocks:
            x = block(x, condition)
        x = resize(x)
    return x


def _unchanged(x: Tensor) -> Tensor:
    return x


def embedding(time: Tensor, size: int) -> Tensor:
    """Sines and cosines of `time` [b] at `size / 2` frequencies from 1 down to 1/10000: [b, size] float64.

    Source: Vaswani et al., "Attention is all you need", 2017.
    """
    half = size // 2
    exponent = torch.arange(half, device=time.device, dtype=torch.float64) / (half - 1)
    angle = time.double()[:, None] * torch.exp(-math.log(10_000.0) * exponent)
    return torch.cat([angle.sin(), angle.cos()], 1)


def check_unet(chunk_size: int, channels: Sequence[int], kernel_size: int, time_dim: int) -> None:
    """Raise `ConfigError` for invalid sizes of a U-Net."""
    if not channels or any(n < GROUPS or n % GROUPS for n in channels):
        raise ConfigError(
            f"channels must be multiples of {GROUPS}, one for each level, not {tuple(channels)}"
        )
    multiple = 2 ** (len(channels) - 1)
    if chunk_size < 1 or chunk_size % multiple:
        raise ConfigError(
            f"chunk_size, with num_past_actions, must be a multiple of {multiple} with {len(channels)} levels"
            f" of channels, not {chunk_size}"
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ConfigError(f"kernel_size must be odd, not {kernel_size}")
    if time_dim < 4 or time_dim % 2:
        raise ConfigError(f"time_dim must be even and at least 4, not {time_dim}")
