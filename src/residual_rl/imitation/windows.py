"""Demonstrations as training windows: what a policy sees, and the actions that follow, as flat tensors on a device.

Shapes: N steps of all episodes together, H observations of a window, K actions of a chunk, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.imitation.normalization import Statistics
from residual_rl.imitation.obs_padding import ObsPadding


@dataclass(frozen=True)
class Windows:
    """The steps of some episodes, one after the other. A window is named by its step."""

    obs: Tensor
    """[N, O] float32: the observation before each action."""
    actions: Tensor
    """[N, A] float32: the labels."""
    first: Tensor
    """[N] int64: the first step of each step's episode."""
    last: Tensor
    """[N] int64: its last."""

    def __len__(self) -> int:
        return len(self.obs)

    def at(self, steps: Tensor, num_obs_steps: int, chunk_size: int, num_past_actions: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """The windows of `steps` [b]: observations [b, H, O], actions [b, P + K, A], and which of these are of the episode [b, P + K] bool.

        Observations end at the step; before an episode's first, the first is repeated. Actions begin P = `num_past_actions` before the
        step; before an episode's first and after its last, those are repeated, and not valid. (Diffusion Policy predicts from the window's
        oldest observation on: P = H - 1.)
        """
        back = torch.arange(1 - num_obs_steps, 1, device=steps.device)
        ahead = torch.arange(-num_past_actions, chunk_size, device=steps.device)
        first, last = self.first[steps, None], self.last[steps, None]
        seen = (steps[:, None] + back).maximum(first)
        done = steps[:, None] + ahead
        return self.obs[seen], self.actions[done.maximum(first).minimum(last)], (first <= done) & (done <= last)

    def padded(self, padding: ObsPadding | None) -> Windows:
        """The same with the values of `padding` in the observations."""
        return self if padding is None else replace(self, obs=padding(self.obs))

    def normalized(self, statistics: Statistics, device: torch.device) -> Windows:
        """The same on `device`, as the network sees them."""
        moved = Windows(*(getattr(self, name).to(device) for name in ("obs", "actions", "first", "last")))
        statistics = statistics.to(device, torch.float32)
        obs, actions = statistics.normalize_obs(moved.obs), statistics.normalize_actions(moved.actions)
        return replace(moved, obs=obs, actions=actions)


def make_windows(episodes: Sequence[tuple[Mapping[str, Any], Any]], obs_keys: Sequence[str]) -> Windows:
    """The windows of `episodes`: observations by name [T + 1 or T, …] and actions [T, A] of each, as arrays."""
    observations, actions, lengths = [], [], []
    for obs, labels in episodes:
        label = torch.from_numpy(np.asarray(labels, dtype=np.float32))
        parts = [torch.from_numpy(_vectors(obs, key)[: len(label)]) for key in obs_keys]
        observations.append(torch.cat(parts, 1))
        actions.append(label)
        lengths.append(len(label))
    length = torch.tensor(lengths)
    end = length.cumsum(0)
    first, last = ((end - length).repeat_interleave(length), (end - 1).repeat_interleave(length))
    return Windows(torch.cat(observations), torch.cat(actions), first, last)


def _vectors(obs: Mapping[str, Any], key: str) -> Any:
    """The observation `key` of each step, flat: [T, …] → [T, O] float32."""
    if key not in obs:
        raise UnknownNameError("observation", key, obs)
    value = np.asarray(obs[key])
    if value.dtype == np.uint8:
        raise ConfigError(f"observation {key!r} {value.shape[1:]} is an image; these policies learn from vectors: take it out of obs_keys")
    return value.astype(np.float32).reshape(len(value), -1)


def split_episodes(count: int, val_share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the training and of the validation episodes, each in order: a random `val_share` of `count`, but one at least is left to
    train on, and one at least validated where a share is asked for and there are two."""
    wanted = round(val_share * count) or (1 if val_share > 0.0 else 0)
    size = min(wanted, count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[size:]), sorted(order[:size])
