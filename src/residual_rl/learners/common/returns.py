"""Pure functions for returns and advantages. Shapes: T time, B envs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def without_bootstrap(terminated: Tensor, ended: Tensor, bootstrap_at_done: str) -> Tensor:
    """Where the value of the next observation counts for nothing, bool of the shape of both.

    Args:
        terminated: bool, after which steps an episode terminated.
        ended: bool, after which it terminated or was truncated.
        bootstrap_at_done: whether the value of an episode's final observation counts: `truncated` where it was cut off and not
            where it terminated, `always`, or `never`.
    """
    return {"truncated": terminated, "never": ended, "always": torch.zeros_like(ended)}[bootstrap_at_done]


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    ended: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation; returns `(advantage, return)`, both [T, B], where return = advantage + value.

    All inputs are [T, B]. `next_value[t]` is the value of the true next observation of step t: of the final observation
    where an episode was truncated, never of the first one of the following episode. `terminated` (bool) makes that value 0;
    `ended` (bool, terminated or truncated) cuts the trace, so that nothing flows back from the following episode.

        delta[t] = reward[t] + gamma * (1 - terminated[t]) * next_value[t] - value[t]
        advantage[t] = delta[t] + gamma * gae_lambda * (1 - ended[t]) * advantage[t + 1]

    Source: Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", 2016, eq. 16.
    Deviation: the paper knows no truncation.
    """
    delta = reward + gamma * next_value * ~terminated - value
    decay = gamma * gae_lambda * (~ended).to(delta.dtype)
    advantage = torch.empty_like(delta)
    trace = torch.zeros_like(delta[0])
    for t in range(delta.shape[0] - 1, -1, -1):
        trace = torch.addcmul(delta[t], decay[t], trace, out=advantage[t])
    return advantage, advantage + value


def discounted_sums(reward: Tensor, ended: Tensor, start: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Running discounted sums of past rewards: `sums[t] = gamma * sums[t - 1] + reward[t]`, from 0 after an episode's end.

    `reward`, `ended` (bool) are [T, B]; `start` [B] is the sum before step 0. Returns `(sums [T, B], the next start [B])`.
    It looks backwards, as reward scaling does (`learners.normalizers.RewardScaler`); it is not the return of a state.
    """
    sums = torch.empty_like(reward)
    keep = gamma * (~ended).to(reward.dtype)
    decay = torch.cat([torch.full_like(keep[:1], gamma), keep[:-1]])
    last = start
    for t in range(reward.shape[0]):
        last = torch.addcmul(reward[t], decay[t], last, out=sums[t])
    return sums, last * ~ended[-1]


class NStepReturns(NamedTuple):
    """Discounted sums of rewards, and what follows them. S starting points."""

    total: Tensor
    """[S]: the rewards of the window, each discounted by its distance from the start."""
    discount: Tensor
    """[S]: weight of the value of the window's last next observation: gamma to the power of its length, or 0 where nothing follows."""
    last: Tensor
    """[S] int64: index in [0, n) of the window's last step."""


def n_step_returns(
    reward: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    available: Tensor,
    gamma: float,
    bootstrap_at_done: str = "truncated",
) -> NStepReturns:
    """Returns over up to n consecutive steps from each of S starting points; an end of the episode, or of the data, ends the window.

        total = sum over k <= last of gamma^k * reward[k]
        target = total + discount * value(next observation of step `last`)

    Args:
        reward: [n, S]; beyond the window's end anything finite.
        terminated: [n, S] bool.
        truncated: [n, S] bool.
        available: [S] int64: how many of the n steps have been collected, 1 or more.
        gamma: discount per step.
        bootstrap_at_done: see `without_bootstrap`.

    Source: Sutton & Barto, "Reinforcement Learning", 2018, eq. 7.1. Deviation: truncation, which the book does not know.
    """
    ended = terminated | truncated
    alive = torch.ones_like(available, dtype=torch.bool)
    total, last = torch.zeros_like(reward[0]), torch.zeros_like(available)
    for k in range(len(reward)):
        if k > 0:
            alive = alive & ~ended[k - 1] & (available > k)
            last = last + alive
        total = total + (gamma**k) * reward[k] * alive
    discount = torch.pow(gamma, (last + 1).to(reward.dtype))
    stops = without_bootstrap(terminated, ended, bootstrap_at_done)
    return NStepReturns(total, discount.masked_fill(stops.gather(0, last[None])[0], 0.0), last)
