"""Base policies. Importing this package registers them; the registering modules do not import torch."""

from residual_rl.base_policies import (
    expert,
    gr00t,
    hybrid,
    ik,
    il,
    jacobian,
    lerobot,
    model,
    openpi,
    python,
    zero,
)

__all__ = [
    "expert",
    "gr00t",
    "hybrid",
    "ik",
    "il",
    "jacobian",
    "lerobot",
    "model",
    "openpi",
    "python",
    "zero",
]
