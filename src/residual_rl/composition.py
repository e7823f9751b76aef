"""The composition: the one place that makes the executed action of a base action and a residual action. Pure functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

ScaleRule = Callable[[float, Tensor], Tensor]
"""From the residual scale and the base policy's uncertainty [b] to each world's scale [b, 1]."""


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


def reach(residual_scale: float | Tensor, residual_size: Tensor | None) -> float | Tensor:
    """The scale to compose with: `residual_scale` (a number, or [b, 1]), in units of the env's `residual_size` [A] where it has one."""
    return residual_scale if residual_size is None else residual_scale * residual_size


def residual_penalty(residual_action: Tensor, residual_scale: float | Tensor, weight: float) -> Tensor:
    """`-weight · ‖residual_scale · residual_action‖²` [B]: what the size of the residual costs."""
    return -weight * (residual_scale * residual_action).square().sum(-1)


def adaptive_scale(residual_scale: float, uncertainty: Tensor, min_share: float, full_uncertainty: float) -> Tensor:
    """More freedom for the residual where the base policy is unsure: each world's scale [b, 1].

    `residual_scale · (min_share + (1 - min_share) · clip(uncertainty / full_uncertainty, 0, 1))`

    Args:
        residual_scale: the bound of the residual, which no world's scale exceeds.
        uncertainty: [b], 0 or more.
        min_share: share of `residual_scale` that is left where there is no uncertainty, in [0, 1].
        full_uncertainty: uncertainty from which on a world has the whole `residual_scale`, above 0.
    """
    share = min_share + (1.0 - min_share) * (uncertainty / full_uncertainty).clamp(0.0, 1.0)
    return (residual_scale * share)[:, None]


def scale_rule(residual: Any) -> ScaleRule | None:
    """How the residual scale follows the base policy's uncertainty; None where it does not."""
    if residual.adaptive == "off":
        return None
    return functools.partial(adaptive_scale, min_share=residual.adaptive_min_share, full_uncertainty=residual.adaptive_uncertainty)
