"""Names and shapes in public Diffusion Policy checkpoints, and a reference implementation of the network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Two levels of 8 and 16 channels, kernel 3, embedding of 8, actions of 2, two observations of 3: a condition
# of 8 + 6.
SHAPES: dict[str, tuple[int, ...]] = {
    "diffusion_step_encoder.1.weight": (32, 8),
    "diffusion_step_encoder.1.bias": (32,),
    "diffusion_step_encoder.3.weight": (8, 32),
    "diffusion_step_encoder.3.bias": (8,),
}
for _name, _inputs, _outputs in (
    ("down_modules.0.0", 2, 8),
    ("down_modules.0.1", 8, 8),
    ("down_modules.1.0", 8, 16),
    ("down_modules.1.1", 16, 16),
    ("mid_modules.0", 16, 16),
    ("mid_modules.1", 16, 16),
    ("up_modules.0.0", 32, 8),
    ("up_modules.0.1", 8, 8),
):
    SHAPES |= {
        f"{_name}.blocks.0.block.0.weight": (_outputs, _inputs, 3),
        f"{_name}.blocks.0.block.0.bias": (_outputs,),
        f"{_name}.blocks.0.block.1.weight": (_outputs,),
        f"{_name}.blocks.0.block.1.bias": (_outputs,),
        f"{_name}.blocks.1.block.0.weight": (_outputs, _outputs, 3),
        f"{_name}.blocks.1.block.0.bias": (_outputs,),
        f"{_name}.blocks.1.block.1.weight": (_outputs,),
        f"{_name}.blocks.1.block.1.bias": (_outputs,),
        f"{_name}.cond_encoder.1.weight": (2 * _outputs, 14),
        f"{_name}.cond_encoder.1.bias": (2 * _outputs,),
    }
SHAPES |= {
    "down_modules.0.0.residual_conv.weight": (8, 2, 1),
    "down_modules.0.0.residual_conv.bias": (8,),
    "down_modules.1.0.residual_conv.weight": (16, 8, 1),
    "down_modules.1.0.residual_conv.bias": (16,),
    "up_modules.0.0.residual_conv.weight": (8, 32, 1),
    "up_modules.0.0.residual_conv.bias": (8,),
    "down_modules.0.2.conv.weight": (8, 8, 3),
    "down_modules.0.2.conv.bias": (8,),
    "up_modules.0.2.conv.weight": (8, 8, 4),
    "up_modules.0.2.conv.bias": (8,),
    "final_conv.0.block.0.weight": (8, 8, 3),
    "final_conv.0.block.0.bias": (8,),
    "final_conv.0.block.1.weight": (8,),
    "final_conv.0.block.1.bias": (8,),
    "final_conv.1.weight": (2, 8, 1),
    "final_conv.1.bias": (2,),
}
TINY: dict[str, Any] = {"channels": (8, 16), "kernel_size": 3, "time_dim": 8}


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Random tensors with these names."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def saved(prefix: str = "noise_pred_net.") -> dict[str, Any]:
    """The checkpoint that the baselines save: the weights, and their moving average with other values."""
    return {
        "agent": {prefix + name: tensor for name, tensor in tensors(1).items()},
        "ema_agent": {prefix + name: tensor for name, tensor in tensors(0).items()},
    }


def write(path: Path, payload: Any = None) -> Path:
    torch.save(saved() if payload is None else payload, path)
    return path


def forward(w: dict[str, Tensor], x: Tensor, time: Tensor, obs: Tensor) -> Tensor:
    """The two-level network on `x` [b, L, 2], channels first inside, with torch's own layers."""
    w = {name: tensor.to(x.dtype) for name, tensor in w.items()}

    def mish(value: Tensor) -> Tensor:
        return value * torch.tanh(torch.log1p(value.exp()))

    def conv(name: str, value: Tensor, **how: int) -> Tensor:
        return F.conv1d(value, w[f"{name}.weight"], w[f"{name}.bias"], **how)

    def block(name: str, value: Tensor) -> Tensor:
        out = conv(f"{name}.block.0", value, padding=1)
        return mish(F.group_norm(out, 8, w[f"{name}.block.1.weight"], w[f"{name}.block.1.bias"]))

    def residual(name: str, value: Tensor) -> Tensor:
        film = F.linear(mish(condition), w[f"{name}.cond_encoder.1.weight"], w[f"{name}.cond_encoder.1.bias"])
        half = film.shape[1] // 2
        out = block(f"{name}.blocks.0", value) * film[:, :half, None] + film[:, half:, None]
        way = conv(f"{name}.residual_conv", value) if f"{name}.residual_conv.weight" in w else value
        return block(f"{name}.blocks.1", out) + way

    frequencies = [math.exp(-math.log(10_000) * i / 3) for i in range(4)]
    angles = torch.stack([time.to(x.dtype) * f for f in frequencies], 1)
    moment = torch.cat([angles.sin(), angles.cos()], 1)
    moment = mish(F.linear(moment, w["diffusion_step_encoder.1.weight"], w["diffusion_step_encoder.1.bias"]))
    moment = F.linear(moment, w["diffusion_step_encoder.3.weight"], w["diffusion_step_encoder.3.bias"])
    condition = torch.cat([moment, obs], 1)

    h = residual("down_modules.0.1", residual("down_modules.0.0", x.mT))
    h = conv("down_modules.0.2.conv", h, stride=2, padding=1)
    deep = residual("down_modules.1.1", residual("down_modules.1.0", h))
    h = residual("mid_modules.1", residual("mid_modules.0", deep))
    h = residual("up_modules.0.1", residual("up_modules.0.0", torch.cat([h, deep], 1)))
    h = F.conv_transpose1d(
        h, w["up_modules.0.2.conv.weight"], w["up_modules.0.2.conv.bias"], stride=2, padding=1
    )
    return conv("final_conv.1", block("final_conv.0", h)).mT
