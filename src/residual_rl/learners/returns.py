"""Pure functions for returns and advantages. Shapes: T time, B envs."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, ended: Tensor, gamma: float, gae_lambda: float
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
