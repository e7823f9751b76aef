"""Pure functions for returns and advantages. Shapes: T time, B envs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def bootstrap_mask(terminated: Tensor, ended: Tensor, bootstrap_at_done: str) -> Tensor:
    """The steps after which the return is bootstrapped from the value of the next observation (bool).

    Args:
        terminated: bool: the episode terminated after this step.
        ended: bool, same shape: the episode terminated or was truncated after this step.
        bootstrap_at_done: when to bootstrap at the end of an episode: `truncated` (only if it was truncated),
            `always`, or `never`.
    """
    return {"truncated": ~terminated, "never": ~ended, "always": torch.ones_like(ended)}[bootstrap_at_done]


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    bootstrap: Tensor,
    ended: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation.

        delta[t] = reward[t] + gamma * bootstrap[t] * next_value[t] - value[t]
        advantage[t] = delta[t] + gamma * gae_lambda * (1 - ended[t]) * advantage[t + 1]

    Source: Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
    2016, eq. 16. Deviation: the paper does not distinguish truncation from termination.

    Args:
        reward: [T, B].
        value: [T, B]: values of the observations.
        next_value: [T, B]: values of the true next observations: of the final observation at the end of an
            episode, not of the first observation of the next episode.
        bootstrap: [T, B] bool: whether `next_value` counts; see `bootstrap_mask`.
        ended: [T, B] bool: terminated or truncated; stops the trace at the end of the episode.
        gamma: discount per step.
        gae_lambda: decay of the trace.

    Returns:
        Advantages and returns (advantage + value), [T, B] each.
    """
    delta = reward + gamma * next_value * bootstrap - value
    decay = gamma * gae_lambda * (~ended).to(delta.dtype)
    advantage = torch.empty_like(delta)
    trace = torch.zeros_like(delta[0])
    for t in range(delta.shape[0] - 1, -1, -1):
        trace = torch.addcmul(delta[t], decay[t], trace, out=advantage[t])
    return advantage, advantage + value


def discounted_sums(reward: Tensor, ended: Tensor, start: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Running discounted sums of past rewards: `sums[t] = gamma * sums[t - 1] + reward[t]`, reset to 0 after
    each episode.

    These sums are used for reward scaling (`normalizers.RewardScaler`). They look backwards in time and are
    not returns.

    Args:
        reward: [T, B].
        ended: [T, B] bool: terminated or truncated.
        start: [B]: the sums before step 0.
        gamma: discount per step.

    Returns:
        The sums [T, B], and `start` [B] for the next call.
    """
    sums = torch.empty_like(reward)
    keep = gamma * (~ended).to(reward.dtype)
    decay = torch.cat([torch.full_like(keep[:1], gamma), keep[:-1]])
    last = start
    for t in range(reward.shape[0]):
        last = torch.addcmul(reward[t], decay[t], last, out=sums[t])
    return sums, last * ~ended[-1]


class NStepReturns(NamedTuple):
    """n-step returns from S starting points: `target = n_step_return + discount * value(next observation of
    step last)`."""

    n_step_return: Tensor
    """[S]: discounted sum of the rewards in the window."""
    discount: Tensor
    """[S]: weight of the value after the window: gamma to the power of its length, or 0 without
    bootstrapping."""
    last: Tensor
    """[S] int64: index in [0, n) of the last step of the window."""


def n_step_returns(
    reward: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    available: Tensor,
    gamma: float,
    bootstrap_at_done: str = "truncated",
) -> NStepReturns:
    """Returns over up to n steps from each of S starting points. A window ends early with the episode or with
    the data.

        n_step_return = sum over k <= last of gamma^k * reward[k]
        target = n_step_return + discount * value(next observation of step `last`)

    Source: Sutton & Barto, "Reinforcement Learning", 2018, eq. 7.1. Deviation: the book does not treat
    truncation.

    Args:
        reward: [n, S]; any finite values after the end of the window.
        terminated: [n, S] bool.
        truncated: [n, S] bool.
        available: [S] int64: number of collected steps among the n, at least 1.
        gamma: discount per step.
        bootstrap_at_done: see `bootstrap_mask`.
    """
    ended = terminated | truncated
    alive = torch.ones_like(available, dtype=torch.bool)
    n_step_return = torch.zeros_like(reward[0])
    last = torch.zeros_like(available)
    for k in range(len(reward)):
        if k > 0:
            alive = alive & ~ended[k - 1] & (available > k)
            last = last + alive
        n_step_return = n_step_return + (gamma**k) * reward[k] * alive
    discount = torch.pow(gamma, (last + 1).to(reward.dtype))
    bootstrap = bootstrap_mask(terminated, ended, bootstrap_at_done).gather(0, last[None])[0]
    return NStepReturns(n_step_return, discount.masked_fill(~bootstrap, 0.0), last)
