"""Augmentation of images, on the device that they are on."""

from __future__ import annotations

import torch
from torch import Tensor


def random_shift(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Each image shifted by whole pixels, drawn uniformly from -`pad` to `pad` in both directions; its edge pixels fill the rest.

    That is a random crop of H x W pixels from the image padded by `pad` repeated edge pixels.

    Source: Kostrikov et al., "Image Augmentation Is All You Need", 2020; Yarats et al., "Mastering Visual Continuous Control", 2021.

    Args:
        images: [b, H, W, C] of any type, which stays.
        pad: the largest shift [pixels]; 0 draws nothing.
        generator: what the shifts are drawn from, on the images' device.
    """
    if pad == 0:
        return images
    shifts = torch.randint(-pad, pad + 1, (len(images), 2), generator=generator, device=images.device)
    return shift(images, shifts)


def shift(images: Tensor, shifts: Tensor) -> Tensor:
    """`images` [b, H, W, C] seen from `shifts` [b, 2] (int64) pixels further down and to the right; edge pixels are repeated."""
    b, height, width, channels = images.shape
    rows = (torch.arange(height, device=images.device) + shifts[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + shifts[:, 1:]).clamp(0, width - 1)
    moved = images.gather(1, rows[:, :, None, None].expand(b, height, width, channels))
    return moved.gather(2, columns[:, None, :, None].expand(b, height, width, channels))
