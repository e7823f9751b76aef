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
"""Maps the residual scale and the base policy's uncertainty [b] to the scale of each env [b, 1]."""


def compose(base_action: Tensor, residual_action: Tensor, effective_scale: float | Tensor) -> Tensor:
    """`clip(base_action + effective_scale · residual_action)` in the normalised action space.

    Args:
        base_action: [B, A].
        residual_action: [B, A] in [-1, 1].
        effective_scale: factor of the residual action; a number, or a tensor that broadcasts to [B, A].

    Returns:
        The executed action [B, A] in [-1, 1]. With a zero scale or a zero residual it equals the clipped base
        action bit for bit.
    """
    return (base_action + effective_scale * residual_action).clamp(-1.0, 1.0)


def decompose(base_action: Tensor, action: Tensor, effective_scale: float | Tensor) -> Tensor:
    """The inverse of `compose`: the residual action [B, A] that turns `base_action` into `action`.

    The result is not clipped: elements outside of [-1, 1] are beyond the residual's bound. It is zero where
    the scale is zero.
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
    """The scale of each env [b, 1], larger where the base policy is uncertain.

    `residual_scale · (min_share + (1 - min_share) · clip(uncertainty / full_uncertainty, 0, 1))`

    Args:
        residual_scale: the bound of the residual, which no env's scale exceeds.
        uncertainty: [b], 0 or more.
        min_share: share of `residual_scale` that remains without uncertainty, in [0, 1].
        full_uncertainty: uncertainty at which the scale reaches `residual_scale`, above 0.
    """
    share = min_share + (1.0 - min_share) * (uncertainty / full_uncertainty).clamp(0.0, 1.0)
    return (residual_scale * share)[:, None]


@dataclass(frozen=True)
class Composition:
    """Combines base and residual actions into executed actions.

    It has two scales. `residual_scale` is the bound of the residual in residual units. `effective_scale` is
    the factor of a residual action in the normalised action space: the residual scale times `unit`.
    """

    scale: float
    """The residual scale that schedules change and exported policies store."""
    rule: ScaleRule | None = None
    """Computes the scale of each env from `scale` and the base policy's uncertainty; None: `scale` for all
    envs."""
    unit: Tensor | None = None
    """[A]: the action change of a residual of 1; None means 1."""

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
        """Factor of the residual action, for base actions with this `uncertainty` [b]."""
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
