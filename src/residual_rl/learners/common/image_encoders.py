"""Convolutional encoders for the images of any set of cameras."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residual_rl.errors import ConfigError

_NATURE = ((32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0))
_SMALL = ((32, 3, 2, 1), (64, 3, 2, 1), (64, 3, 1, 1))
"""Layers: channels, kernel, stride, padding [pixels]."""
_NATURE_SIDE = 36
"""Smallest image side for which the layers of `_NATURE` have a nonempty output [pixels]."""
_MAX_PIXELS = 256 * 256


class ConvEncoder(nn.Module):
    """Features [b, F] in (-1, 1) of images [b, H, W, C] uint8 of one size.

    The encoder has the three convolutions of Mnih et al., "Human-level control through deep reinforcement
    learning", Nature 2015, with ReLU, applied to pixels scaled to [-0.5, 0.5]. For images with a side below
    36 pixels, which are too small for these, it has 3 x 3 convolutions with strides 2, 2 and 1. A linear
    projection, layer normalisation without learned gain and tanh follow, as in Yarats et al., "Mastering
    Visual Continuous Control", 2021, so that features have the same magnitude as normalised state vectors.

    Args:
        height: H.
        width: W.
        channels: C.
        num_features: F.
        generator: generator of the weights (CPU), which are orthogonal with gain √2.
    """

    def __init__(self, height: int, width: int, channels: int, num_features: int, generator: torch.Generator):
        super().__init__()
        convs: list[nn.Module] = []
        for filters, kernel, stride, padding in _NATURE if min(height, width) >= _NATURE_SIDE else _SMALL:
            convs.append(nn.utils.skip_init(nn.Conv2d, channels, filters, kernel, stride, padding))
            height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
            channels = filters
        self.convs = nn.ModuleList(convs)
        self.projection = nn.utils.skip_init(nn.Linear, channels * height * width, num_features)
        for layer in (*convs, self.projection):
            nn.init.orthogonal_(layer.weight, math.sqrt(2.0), generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        # [b, H, W, C] viewed as [b, C, H, W] is in torch's channels-last format: no data is copied
        x = images.permute(0, 3, 1, 2).to(self.projection.weight.dtype).div(255.0).sub(0.5)
        for conv in self.convs:
            x = F.relu(conv(x))
        x = self.projection(x.flatten(1))
        return F.layer_norm(x, x.shape[-1:]).tanh()


class ImageEncoder(nn.Module):
    """Features [b, size] of the images of several cameras.

    The images of cameras with the same resolution are stacked along the channels and share one `ConvEncoder`.

    Args:
        shapes: (H, W, C) of each camera by name, in the order in which `forward` takes their images.
        num_features: number of features per `ConvEncoder`.
        generator: generator of the weights (CPU).

    Raises:
        ConfigError: an image is too large.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], num_features: int, generator: torch.Generator):
        super().__init__()
        by_size: dict[tuple[int, int], list[int]] = {}
        channels = []
        for i, (name, (height, width, c)) in enumerate(shapes.items()):
            if height * width > _MAX_PIXELS:
                raise ConfigError(
                    f"image {name!r} of {height} x {width} pixels is too large to learn from: choose a"
                    " smaller --image-size, about 64 to 128, or remove it from --obs-keys"
                )
            by_size.setdefault((height, width), []).append(i)
            channels.append(c)
        self._groups = list(by_size.values())
        self.encoders = nn.ModuleList(
            ConvEncoder(height, width, sum(channels[i] for i in camera_ids), num_features, generator)
            for (height, width), camera_ids in by_size.items()
        )
        self.size = num_features * len(self._groups)

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        return torch.cat(
            [encoder(stack) for encoder, stack in zip(self.encoders, self._stacks(images), strict=True)], 1
        )

    def _stacks(self, images: Sequence[Tensor]) -> Iterator[Tensor]:
        for camera_ids in self._groups:
            yield (
                torch.cat([images[i] for i in camera_ids], -1)
                if len(camera_ids) > 1
                else images[camera_ids[0]]
            )
