"""The composition: how a base action and a residual action become the executed action, and back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ScaleRule = Callable[[float, Tensor], Tensor]
"""Maps the residual scale and the base policy's uncertainty [b] to each env's own scale [b, 1]."""


def compose(base_action: Tensor, residual_action: Tensor, effective_scale: float | Tensor) -> Tensor:
    """`clip(base_action + effective_scale · residual_action)` in the normalised action space.

    Args:
        base_action: [B, A].
        residual_action: [B, A] in [-1, 1].
        effective_scale: what the residual action is multiplied by; a number, or a tensor that broadcasts to
            [B, A].

    Returns:
        The executed action [B, A] in [-1, 1]. With a zero scale or a zero residual it equals the clipped base
        action bit for bit.
    """
    return (base_action + effective_scale * residual_action).clamp(-1.0, 1.0)


def decompose(base_action: Tensor, action: Tensor, effective_scale: float | Tensor) -> Tensor:
    """The inverse of `compose`: the residual action [B, A] that makes `action` of `base_action`.

    It is not clipped: elements beyond [-1, 1] are out of the residual's reach. Where the scale is zero, it is
    zero.
    """
    scale = torch.as_tensor(effective_scale, dtype=action.dtype, device=action.device).expand_as(action)
    exact = (action - base_action) / scale.clamp(min=1e-12)
    return torch.where(scale > 0.0, exact, torch.zeros_like(exact))


def residual_penalty(residual_action: Tensor, residual_scale: float | Tensor, weight: float) -> Tensor:
    """`-weight · ‖residual_scale · residual_action‖²` [B]: the reward term that keeps residuals small."""
    return -weight * (residual_scale * residual_action).square().sum(-1)


def adaptive_scale(
    residual_scale: float, uncertainty: Tensor, min_share: float, full_uncertainty: float
) -> Tensor:
    """A larger scale where the base policy is uncertain: each env's own scale [b, 1].

    `residual_scale · (min_share + (1 - min_share) · clip(uncertainty / full_uncertainty, 0, 1))`

    Args:
        residual_scale: the bound of the residual, which no env's scale exceeds.
        uncertainty: [b], 0 or more.
        min_share: share of `residual_scale` that remains without uncertainty, in [0, 1].
        full_uncertainty: uncertainty from which on an env has the whole `residual_scale`, above 0.
    """
    share = min_share + (1.0 - min_share) * (uncertainty / full_uncertainty).clamp(0.0, 1.0)
    return (residual_scale * share)[:, None]


@dataclass(frozen=True)
class Composition:
    """Combines base and residual actions into executed actions, with one meaning for each of its scales.

    `residual_scale` is the bound of the residual in residual units. `effective_scale` is what a residual
    action is multiplied by in the normalised action space: the residual scale times `unit`.
    """

    scale: float
    """The residual scale that training schedules and exported policies hold."""
    rule: ScaleRule | None = None
    """Makes each env's own scale from `scale` and the base policy's uncertainty; None uses `scale` for
    all."""
    unit: Tensor | None = None
    """[A]: the action change that a residual of 1 stands for; None stands for 1."""

    @property
    def adaptive(self) -> bool:
        """Whether the scale depends on the base policy's uncertainty."""
        return self.rule is not None

    def with_scale(self, scale: float) -> Composition:
        """The same composition with another residual scale."""
        return dataclasses.replace(self, scale=scale)

    def residual_scale(self, uncertainty: Tensor) -> float | Tensor:
        """The bound of the residual in residual units: a number, or [b, 1] where the scale is adaptive."""
        return self.scale if self.rule is None else self.rule(self.scale, uncertainty)

    def in_actions(self, residual_scale: float | Tensor) -> float | Tensor:
        """A residual scale (a number, or [b, 1]) in the normalised action space: a number, [A], [b, 1] or [b,
        A]."""
        return residual_scale if self.unit is None else residual_scale * self.unit

    def effective_scale(self, uncertainty: Tensor) -> float | Tensor:
        """What the residual action is multiplied by, for base actions with this `uncertainty` [b]."""
        return self.in_actions(self.residual_scale(uncertainty))

    def apply(self, base_action: Tensor, residual_action: Tensor, uncertainty: Tensor) -> Tensor:
        """The executed action [b, A]; see `compose`."""
        return compose(base_action, residual_action, self.effective_scale(uncertainty))

    def invert(self, base_action: Tensor, action: Tensor, uncertainty: Tensor) -> Tensor:
        """The residual action [b, A], not clipped; see `decompose`."""
        return decompose(base_action, action, self.effective_scale(uncertainty))

    def penalty(self, residual_action: Tensor, uncertainty: Tensor, weight: float) -> Tensor:
        """The reward term [b] for the size of the residual; see `residual_penalty`."""
        return residual_penalty(residual_action, self.residual_scale(uncertainty), weight)


def make_composition(residual: Any, scale: float, unit: Tensor | None) -> Composition:
    """The composition of a run.

    Args:
        residual: its `ResidualCfg`.
        scale: the residual scale, which a schedule or an exported policy may have changed.
        unit: the env's `residual_unit`.
    """
    if residual.adaptive == "off":
        return Composition(scale, None, unit)
    rule = functools.partial(
        adaptive_scale,
        min_share=residual.adaptive_min_share,
        full_uncertainty=residual.adaptive_uncertainty,
    )
    return Composition(scale, rule, unit)
