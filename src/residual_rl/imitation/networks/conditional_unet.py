"""The conditional 1-D U-Net of public Diffusion Policy checkpoints, with the same tensors (by name and shape)
and the same outputs.

Source: `ConditionalUnet1D` of Chi et al., "Diffusion Policy", 2023, in the version of the authors' notebook,
which ManiSkill's `diffusion_policy` baseline and Policy Decorator (Yuan et al., 2024) train and save.
Differences from `unet.UNet`: the condition is the embedding of the time followed by the observations, which
are not embedded; the activation is Mish, also before a block's condition layer; a channel becomes
scale · x + shift instead of (1 + scale) · x + shift; the number of steps is doubled by a transposed
convolution; and the time's layers are wider.

Shapes: b batch, L steps of the chunk, C channels, D condition. Tensors are [b, L, C], channels last; weights
have the shapes of torch's layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residual_rl.errors import ConfigError
from residual_rl.imitation.networks.unet import (
    GROUPS,
    UNet,
    check_unet,
    convolve,
    embedding,
    encode_decode,
)

Levels = Iterable[nn.ModuleList]


class StepConv(nn.Conv1d):
    """Convolution over the steps of [b, L, C], padded with zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias, self.stride[0])


class StepNorm(nn.GroupNorm):
    """Group normalisation of [b, L, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """Convolution, group normalisation, Mish."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int):
        super().__init__()
        self.block = nn.Sequential(
            StepConv(inputs, outputs, kernel_size), StepNorm(GROUPS, outputs), nn.Mish()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class ConditionedBlocks(nn.Module):
    """Two blocks with a skip connection around both. Between the two, each channel is scaled and shifted
    depending on the condition [b, D]."""

    def __init__(self, inputs: int, outputs: int, condition_dim: int, kernel_size: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            [Block(inputs, outputs, kernel_size), Block(outputs, outputs, kernel_size)]
        )
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(condition_dim, 2 * outputs))
        self.residual_conv = StepConv(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.cond_encoder(condition)[:, None].chunk(2, -1)
        out: Tensor = self.blocks[1](scale * self.blocks[0](x) + shift)
        return out + self.residual_conv(x)


class Halving(nn.Module):
    """Convolution with stride 2: [b, L, C] → [b, L / 2, C]."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = StepConv(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Doubling(nn.Module):
    """Transposed convolution with kernel 4, stride 2 and padding 1: [b, L, C] → [b, 2 L, C].

    It is computed as two linear layers on pairs of neighbouring steps: output step 2 t depends on t − 1 and
    t, and 2 t + 1 on t and t + 1. On a CPU, this takes half the time of torch's transposed convolution.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # [b, L + 1, 2 C]: each step and the next one
        pairs = F.pad(x, (0, 0, 1, 1)).unfold(1, 2, 1).flatten(2)
        kernel = self.conv.weight.transpose(0, 1)  # [outputs, inputs, 4]
        even = F.linear(pairs[:, :-1], kernel[..., [3, 1]].flatten(1), self.conv.bias)
        odd = F.linear(pairs[:, 1:], kernel[..., [2, 0]].flatten(1), self.conv.bias)
        return torch.stack([even, odd], 2).flatten(1, 2)


class ConditionalUNet(nn.Module):
    """Maps a chunk of actions [b, L, A], a time [b] and an observation vector [b, O] to [b, L, A].

    The arguments are those of `unet.UNet`, except that `time_dim` is the size of the time's embedding only.
    """

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

        def pair(inputs: int, outputs: int) -> list[nn.Module]:
            sizes = ((inputs, outputs), (outputs, outputs))
            return [ConditionedBlocks(n, m, time_dim + obs_dim, kernel_size) for n, m in sizes]

        def level(inputs: int, outputs: int, resize: nn.Module) -> nn.ModuleList:
            return nn.ModuleList([*pair(inputs, outputs), resize])

        # The identity stands for a layer without weights, so that the others have the published numbers.
        self.diffusion_step_encoder = nn.Sequential(
            nn.Identity(), nn.Linear(time_dim, 4 * time_dim), nn.Mish(), nn.Linear(4 * time_dim, time_dim)
        )
        deepest = channels[-1]
        down = list(itertools.pairwise((action_dim, *channels)))
        self.down_modules = nn.ModuleList(level(n, m, Halving(m)) for n, m in down[:-1])
        self.down_modules.append(level(*down[-1], nn.Identity()))
        self.mid_modules = nn.ModuleList(pair(deepest, deepest))
        self.up_modules = nn.ModuleList(
            level(2 * n, m, Doubling(m)) for n, m in itertools.pairwise(reversed(channels))
        )
        self.final_conv = nn.Sequential(
            Block(channels[0], channels[0], kernel_size), StepConv(channels[0], action_dim, 1)
        )

    @property
    def observing(self) -> tuple[str, ...]:
        """Weights whose last columns read the observations; their other columns read the time."""
        return tuple(name for name, _ in self.named_parameters() if name.endswith("cond_encoder.1.weight"))

    def forward(self, x: Tensor, time: Tensor, obs: Tensor) -> Tensor:
        moment = self.diffusion_step_encoder(embedding(time, self.time_dim).to(obs.dtype))
        condition = torch.cat([moment, obs], 1)
        down, up = cast(Levels, self.down_modules), cast(Levels, self.up_modules)
        out: Tensor = self.final_conv(encode_decode(x, condition, down, self.mid_modules, up))
        return out


LAYOUTS: dict[str, type[UNet | ConditionalUNet]] = {"own": UNet, "public": ConditionalUNet}
"""U-Nets by the layout in a model's settings."""


def unet_of(layout: str) -> type[UNet | ConditionalUNet]:
    """The U-Net of a layout. Raises `ConfigError` if it is unknown."""
    if layout not in LAYOUTS:
        raise ConfigError(f"layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")
    return LAYOUTS[layout]
