"""Normalisation of observations and actions by statistics of the demonstrations, which are part of a
model."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from residual_rl.errors import CheckpointError
from residual_rl.types import State

MIN_STD = 1e-3
"""Observations with a smaller standard deviation in the demonstrations are normalised to 0. The network
cannot learn from them, and a small deviation, for example by a residual on a joint that never moved, would be
scaled up enormously."""
MIN_HALF_RANGE = 1e-3
"""Lower bound of half the range of an action, so that actions that are constant in the demonstrations remain
nearly constant."""
OBS_CLIP = 10.0
"""Bound of normalised observations. Farther outside of the demonstrations, predictions are not meaningful
anyway."""
_NO_CLIP = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Statistics:
    """Statistics of the training episodes (not of the validation episodes). O observation, A action."""

    obs_mean: Tensor
    """[O]"""
    obs_std: Tensor
    """[O]; 0 for ignored observations"""
    action_low: Tensor
    """[A]"""
    action_high: Tensor
    """[A]"""
    obs_clip: Tensor = field(default_factory=lambda: torch.tensor(OBS_CLIP))
    """[]: bound of normalised observations"""

    @classmethod
    def of(cls, obs: Tensor, actions: Tensor) -> Statistics:
        """Compute the statistics of observations [N, O] and actions [N, A]."""
        std, mean = torch.std_mean(obs.double(), 0, correction=0)
        return cls(
            mean.float(), torch.where(std < MIN_STD, 0.0, std).float(), actions.amin(0), actions.amax(0)
        )

    @classmethod
    def identity(cls, obs_dim: int, action_dim: int) -> Statistics:
        """Statistics that leave observations, and actions in [-1, 1], unchanged."""
        ends = -torch.ones(action_dim), torch.ones(action_dim)
        return cls(torch.zeros(obs_dim), torch.ones(obs_dim), *ends, obs_clip=torch.tensor(_NO_CLIP))

    def with_raw_actions(self) -> Statistics:
        """A copy that leaves actions in [-1, 1] unchanged."""
        return replace(
            self, action_low=-torch.ones_like(self.action_low), action_high=torch.ones_like(self.action_high)
        )

    @property
    def raw_actions(self) -> bool:
        """Whether actions are left unchanged."""
        return bool((self.action_low == -1.0).all() and (self.action_high == 1.0).all())

    def to(self, device: torch.device, dtype: torch.dtype) -> Statistics:
        """A copy on `device` as `dtype`."""
        return Statistics(*(getattr(self, entry.name).to(device, dtype) for entry in fields(self)))

    def normalize_obs(self, obs: Tensor) -> Tensor:
        """Normalise observations […, O] to mean 0 and standard deviation 1, clipped to ±`obs_clip`; 0 for
        ignored ones."""
        scale = torch.where(self.obs_std > 0.0, self.obs_std.reciprocal(), 0.0)
        return ((obs - self.obs_mean) * scale).clamp(-self.obs_clip, self.obs_clip)

    def normalize_actions(self, actions: Tensor) -> Tensor:
        """Normalise actions […, A] such that those of the demonstrations are in [-1, 1]."""
        return (actions - self._middle) / self._half_range

    def restore_actions(self, normalized: Tensor) -> Tensor:
        """The inverse of `normalize_actions`, after clipping `normalized` […, A] to [-1, 1]."""
        return normalized.clamp(-1.0, 1.0) * self._half_range + self._middle

    @property
    def _middle(self) -> Tensor:
        return (self.action_low + self.action_high) / 2

    @property
    def _half_range(self) -> Tensor:
        return ((self.action_high - self.action_low) / 2).clamp(min=MIN_HALF_RANGE)

    def state_dict(self) -> State:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @classmethod
    def from_state(cls, state: State | None, obs_dim: int, action_dim: int, where: str) -> Statistics:
        """Restore a state returned by `state_dict`.

        Args:
            state: the state, or None if the file has none.
            obs_dim: O.
            action_dim: A.
            where: the file, for errors.

        Raises:
            CheckpointError: entries are missing or have other shapes.
        """
        names = [entry.name for entry in fields(cls)]
        missing = [name for name in names if not isinstance((state or {}).get(name), Tensor)]
        if state is None or missing:
            raise CheckpointError(
                f"{where} has no normalisation statistics ({', '.join(missing)} missing), without which the"
                " model cannot be used: train it again with `residual-rl imitate`"
            )
        for name in names:
            shape = [] if name == "obs_clip" else [obs_dim if name.startswith("obs") else action_dim]
            if list(state[name].shape) != shape:
                raise CheckpointError(
                    f"{where}: {name} has shape {list(state[name].shape)}; expected {shape}"
                )
        return cls(*(state[name] for name in names))
