"""Image augmentation, computed on the device of the images."""

from __future__ import annotations

import torch
from torch import Tensor


def random_shift(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Shift each image by a random number of pixels, uniform in [-`pad`, `pad`] per axis, and repeat its edge
    pixels.

    This equals a random crop of H x W pixels from the image after padding it with `pad` copies of its edge
    pixels.

    Source: Kostrikov et al., "Image Augmentation Is All You Need", 2020; Yarats et al., "Mastering Visual
    Continuous Control", 2021.

    Args:
        images: [b, H, W, C] of any dtype.
        pad: largest shift [pixels]; 0 returns the images unchanged, without a draw.
        generator: generator of the shifts, on the device of the images.

    Returns:
        The shifted images, [b, H, W, C] of the same dtype.
    """
    if pad == 0:
        return images
    shifts = torch.randint(-pad, pad + 1, (len(images), 2), generator=generator, device=images.device)
    return shift(images, shifts)


def shift(images: Tensor, shifts: Tensor) -> Tensor:
    """Move the view of `images` [b, H, W, C] by `shifts` [b, 2] (int64: down, right) [pixels]; edge pixels
    are repeated."""
    b, height, width, channels = images.shape
    rows = (torch.arange(height, device=images.device) + shifts[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + shifts[:, 1:]).clamp(0, width - 1)
    moved = images.gather(1, rows[:, :, None, None].expand(b, height, width, channels))
    return moved.gather(2, columns[:, None, :, None].expand(b, height, width, channels))
