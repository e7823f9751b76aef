"""Batches of transitions for the gradient steps of off-policy learners. Shapes: S samples, b batch, A action,
O observation."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """The data of one gradient step: b transitions. Names with `next_` refer to the end of the n-step
    window."""

    obs: Tensor
    """[b, O], normalised."""
    base_action: Tensor
    critic_action: Tensor
    """[b, A]: the action in the critics' input: composed or residual."""
    scale: Tensor
    """[b, A]: residual scale relative to the one shared by all envs."""
    n_step_return: Tensor
    """[b]: discounted sum of the rewards in the window."""
    discount: Tensor
    """[b]: weight of the value of the next observation."""
    next_obs: Tensor
    next_base_action: Tensor
    next_scale: Tensor
    target_noise: Tensor
    """[b, A]: standard normal noise for the next action in the target."""
    actor_noise: Tensor
    """[b, A]: standard normal noise for the actor's loss."""
    share: Tensor
    """[b]: share of the residual that acts at `obs`, part of `scale`; 1 without a gate."""
    next_share: Tensor
    """[b]: the same at `next_obs`."""
    critic_ids: Tensor
    """[M] int64: the critics whose minimum is the target value."""


class Sample(NamedTuple):
    """Transitions [S, …] with n-step returns. Names with `next_` refer to the end of the n-step window."""

    obs: Tensor
    base_action: Tensor
    residual_action: Tensor
    action: Tensor
    scale: Tensor
    n_step_return: Tensor
    """[S]: discounted sum of the rewards in the window."""
    discount: Tensor
    """[S]: weight of the value of the next observation."""
    next_obs: Tensor
    next_base_action: Tensor
    next_scale: Tensor
