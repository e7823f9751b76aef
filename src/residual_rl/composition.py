"""The composition: the one place that makes the executed action of a base action and a residual action. Pure functions."""

from __future__ import annotations

from torch import Tensor


def compose(base_action: Tensor, residual_action: Tensor, residual_scale: float | Tensor) -> Tensor:
    """`clip(base_action + residual_scale · residual_action)` in the normalised action space.

    Args:
        base_action: [B, A].
        residual_action: [B, A] in [-1, 1].
        residual_scale: the bound of the residual; a number, or a tensor that broadcasts to [B, A].

    Returns:
        The executed action [B, A] in [-1, 1]; with a zero scale or residual it is the clipped base action bit for bit.
    """
    return (base_action + residual_scale * residual_action).clamp(-1.0, 1.0)


def residual_penalty(residual_action: Tensor, residual_scale: float | Tensor, weight: float) -> Tensor:
    """`-weight · ‖residual_scale · residual_action‖²` [B]: what the size of the residual costs."""
    return -weight * (residual_scale * residual_action).square().sum(-1)
