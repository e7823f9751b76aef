"""What gradient steps of the off-policy learners learn from."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """What a gradient step learns from, b transitions; what `next_` names is of the last step of their n-step windows."""

    obs: Tensor
    """[b, O], normalised."""
    base_action: Tensor
    judged: Tensor
    """[b, A]: the action that the critics judge, composed or residual."""
    scale: Tensor
    """[b, A]: factor on the residual scale that all worlds share."""
    total: Tensor
    """[b]: discounted sum of the window's rewards."""
    discount: Tensor
    """[b]: weight of the value of the next observation."""
    next_obs: Tensor
    next_base_action: Tensor
    next_scale: Tensor
    target_noise: Tensor
    """[b, A]: standard normal, for the target's action."""
    actor_noise: Tensor
    """[b, A]: standard normal, for the actor's."""
    members: Tensor
    """[M] int64: the critics whose least value makes the target."""


class Sample(NamedTuple):
    """Transitions [S, …] with their n-step returns; what `next_` names is of the last step of each window."""

    obs: Tensor
    base_action: Tensor
    residual_action: Tensor
    action: Tensor
    scale: Tensor
    total: Tensor
    """[S]: discounted sum of the window's rewards."""
    discount: Tensor
    """[S]: weight of the value of the next observation."""
    next_obs: Tensor
    next_base_action: Tensor
    next_scale: Tensor
