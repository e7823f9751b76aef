"""The conditional 1-D U-Net in the layout of public Diffusion Policy checkpoints: names and shapes of its
tensors, and its arithmetic.

Source: `ConditionalUnet1D` of Chi et al., "Diffusion Policy", 2023, in the form of its authors' notebook,
which ManiSkill's `diffusion_policy` baseline and Policy Decorator (Yuan et al., 2024) train and save. What
differs from `networks.UNet`: observations go as they are into the condition, behind the embedding of the
time; the activation is Mish, also before a block's layer of the condition; a channel becomes scale · x +
shift, without 1 +; steps are doubled by a transposed convolution; and the time's layers are wider.

Shapes: L steps of the chunk, C channels, D condition. Tensors are [b, L, C], channels last, though weights
lie as torch's layers have them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residual_rl.errors import ConfigError
from residual_rl.imitation.networks.unet import GROUPS, UNet, check_unet, convolve, embedding


class StepConv(nn.Conv1d):
    """Convolution over the steps of [b, L, C], padded by zeros."""

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
    """Two blocks with a way around them; between the two each channel is scaled and shifted by the condition
    [b, D]."""

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
    """Every other step of a convolution: [b, L, C] → [b, L / 2, C]."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = StepConv(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Doubling(nn.Module):
    """Transposed convolution with kernel 4, stride 2 and padding 1: [b, L, C] → [b, 2 L, C].

    Two linear layers on pairs of neighbours: the step 2 t is made of t − 1 and t, and 2 t + 1 of t and t + 1.
    Measured on a CPU, that takes half of the time of torch's.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        pairs = (
            F.pad(x, (0, 0, 1, 1)).unfold(1, 2, 1).flatten(2)
        )  # [b, L + 1, 2 C]: a step and the one after it
        kernel = self.conv.weight.transpose(0, 1)  # [outputs, inputs, 4]
        even = F.linear(pairs[:, :-1], kernel[..., [3, 1]].flatten(1), self.conv.bias)
        odd = F.linear(pairs[:, 1:], kernel[..., [2, 0]].flatten(1), self.conv.bias)
        return torch.stack([even, odd], 2).flatten(1, 2)


class ConditionalUNet(nn.Module):
    """From a chunk of actions [b, L, A], a time [b] and a vector of observations [b, O] to a vector for each
    step, [b, L, A].

    Args: as those of `networks.UNet`, but that `time_dim` is the size of the time's embedding alone.
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

        # The first has no weights, and its place is kept: layers are named by their number.
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
        """Weights whose last columns read the observations; the columns before these read the time."""
        return tuple(name for name, _ in self.named_parameters() if name.endswith("cond_encoder.1.weight"))

    def forward(self, x: Tensor, time: Tensor, obs: Tensor) -> Tensor:
        moment = self.diffusion_step_encoder(embedding(time, self.time_dim).to(obs.dtype))
        condition = torch.cat([moment, obs], 1)
        seen = []
        for level in self.down_modules:
            first, second, resize = cast(nn.ModuleList, level)
            x = second(first(x, condition), condition)
            seen.append(x)
            x = resize(x)
        for blocks in self.mid_modules:
            x = blocks(x, condition)
        for level in self.up_modules:
            first, second, resize = cast(nn.ModuleList, level)
            x = torch.cat([x, seen.pop()], -1)
            x = resize(second(first(x, condition), condition))
        out: Tensor = self.final_conv(x)
        return out


LAYOUTS: dict[str, type[UNet | ConditionalUNet]] = {"own": UNet, "public": ConditionalUNet}
"""The U-Nets, by the name of their layout in a model's settings."""


def unet_of(layout: str) -> type[UNet | ConditionalUNet]:
    """The class of that layout. Raises `ConfigError` for an unknown one."""
    if layout not in LAYOUTS:
        raise ConfigError(f"layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")
    return LAYOUTS[layout]
