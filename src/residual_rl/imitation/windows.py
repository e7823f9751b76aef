"""Training windows of demonstrations: observations and the actions that follow them, as flat tensors on a
device.

Shapes: N steps of all episodes together, H observations of a window, K actions of a chunk, O observation, A
action.
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
    """The steps of several episodes, concatenated. A window is identified by its step."""

    obs: Tensor
    """[N, O] float32: the observation before each action."""
    actions: Tensor
    """[N, A] float32: the labels."""
    first: Tensor
    """[N] int64: the first step of the episode."""
    last: Tensor
    """[N] int64: the last step of the episode."""

    def __len__(self) -> int:
        return len(self.obs)

    def at(
        self, steps: Tensor, num_obs_steps: int, chunk_size: int, num_past_actions: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The windows at `steps` [b].

        Observations end at the step and are padded with the episode's first observation. Actions begin P =
        `num_past_actions` before the step and are padded with the episode's first and last actions, which are
        marked as invalid. (Diffusion Policy predicts from the oldest observation on: P = H - 1.)

        Returns:
            Observations [b, H, O], actions [b, P + K, A], and their validity [b, P + K] (bool).
        """
        back = torch.arange(1 - num_obs_steps, 1, device=steps.device)
        ahead = torch.arange(-num_past_actions, chunk_size, device=steps.device)
        first, last = self.first[steps, None], self.last[steps, None]
        obs_steps = (steps[:, None] + back).maximum(first)
        action_steps = steps[:, None] + ahead
        valid = (first <= action_steps) & (action_steps <= last)
        return self.obs[obs_steps], self.actions[action_steps.maximum(first).minimum(last)], valid

    def padded(self, padding: ObsPadding | None) -> Windows:
        """A copy with the constants of `padding` inserted into the observations."""
        return self if padding is None else replace(self, obs=padding(self.obs))

    def normalized(self, statistics: Statistics, device: torch.device) -> Windows:
        """A normalised copy on `device`."""
        moved = Windows(*(getattr(self, name).to(device) for name in ("obs", "actions", "first", "last")))
        statistics = statistics.to(device, torch.float32)
        obs, actions = statistics.normalize_obs(moved.obs), statistics.normalize_actions(moved.actions)
        return replace(moved, obs=obs, actions=actions)


def make_windows(episodes: Sequence[tuple[Mapping[str, Any], Any]], obs_keys: Sequence[str]) -> Windows:
    """Construct the windows of `episodes`: observations by name [T + 1 or T, …] and actions [T, A] of each,
    as arrays."""
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
    """The observation `key` of each step, flattened: [T, …] → [T, O] float32."""
    if key not in obs:
        raise UnknownNameError("observation", key, obs)
    value = np.asarray(obs[key])
    if value.dtype == np.uint8:
        raise ConfigError(
            f"observation {key!r} {value.shape[1:]} is an image, but these policies support vectors only:"
            " remove it from obs_keys"
        )
    return value.astype(np.float32).reshape(len(value), -1)


def split_episodes(count: int, val_share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split `count` episodes at random into training and validation episodes.

    The validation set is the fraction `val_share` of all episodes. At least one episode remains for training,
    and if `val_share` is above 0 and there are two episodes, at least one is for validation.

    Returns:
        The sorted indices of the training and of the validation episodes.
    """
    wanted = round(val_share * count) or (1 if val_share > 0.0 else 0)
    size = min(wanted, count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[size:]), sorted(order[:size])
