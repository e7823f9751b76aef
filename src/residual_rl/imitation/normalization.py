"""Statistics of the demonstrations, by which a policy's observations and actions are normalised; they are part of its model."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from residual_rl.errors import CheckpointError
from residual_rl.types import State

MIN_STD = 1e-3
"""What varies less than this in the demonstrations is ignored, normalised to 0: nothing was learned of it, and the smallest deviation, such
as a residual's on a joint that was never moved, would look enormous."""
MIN_HALF_RANGE = 1e-3
"""The same for half the range of an action: one that is constant in the demonstrations stays so within this."""
OBS_CLIP = 10.0
"""Normalised observations are clipped here: far outside the demonstrations a network knows nothing anyway."""
_NO_CLIP = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Statistics:
    """Of the training episodes alone. O observation, A action."""

    obs_mean: Tensor
    """[O]"""
    obs_std: Tensor
    """[O]; 0 where an observation is ignored"""
    action_low: Tensor
    """[A]"""
    action_high: Tensor
    """[A]"""
    obs_clip: Tensor = field(default_factory=lambda: torch.tensor(OBS_CLIP))
    """[]: bound of normalised observations"""

    @classmethod
    def of(cls, obs: Tensor, actions: Tensor) -> Statistics:
        """Of observations [N, O] and actions [N, A]."""
        std, mean = torch.std_mean(obs.double(), 0, correction=0)
        return cls(mean.float(), torch.where(std < MIN_STD, 0.0, std).float(), actions.amin(0), actions.amax(0))

    @classmethod
    def identity(cls, obs_dim: int, action_dim: int) -> Statistics:
        """Of a policy that sees observations as they are, and gives actions as they are, from -1 to 1."""
        ends = -torch.ones(action_dim), torch.ones(action_dim)
        return cls(torch.zeros(obs_dim), torch.ones(obs_dim), *ends, obs_clip=torch.tensor(_NO_CLIP))

    def with_raw_actions(self) -> Statistics:
        """The same for a policy that gives actions as they are, from -1 to 1."""
        return replace(self, action_low=-torch.ones_like(self.action_low), action_high=torch.ones_like(self.action_high))

    @property
    def raw_actions(self) -> bool:
        """Whether actions go through as they are."""
        return bool((self.action_low == -1.0).all() and (self.action_high == 1.0).all())

    def to(self, device: torch.device, dtype: torch.dtype) -> Statistics:
        """The same on `device`, as `dtype`."""
        return Statistics(*(getattr(self, entry.name).to(device, dtype) for entry in fields(self)))

    def normalize_obs(self, obs: Tensor) -> Tensor:
        """[…, O]: mean 0 and standard deviation 1 in the demonstrations, clipped to ±`obs_clip`; 0 where an observation is ignored."""
        scale = torch.where(self.obs_std > 0.0, self.obs_std.reciprocal(), 0.0)
        return ((obs - self.obs_mean) * scale).clamp(-self.obs_clip, self.obs_clip)

    def normalize_actions(self, actions: Tensor) -> Tensor:
        """[…, A]: from -1 to 1 in the demonstrations."""
        return (actions - self._middle) / self._half_range

    def restore_actions(self, normalized: Tensor) -> Tensor:
        """[…, A]: what `normalize_actions` was given, for values clipped to [-1, 1]."""
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
        """What `state_dict` gave; files of earlier releases know of no `obs_clip`. Raises `CheckpointError` naming `where` and what is
        missing."""
        if state is not None:
            state = {"obs_clip": torch.tensor(OBS_CLIP), **state}
        names = [entry.name for entry in fields(cls)]
        missing = [name for name in names if not isinstance((state or {}).get(name), Tensor)]
        if state is None or missing:
            raise CheckpointError(
                f"{where} holds no normalisation statistics ({', '.join(missing)} missing); they are part of a model, since without them "
                "its actions would mean something else: train it anew with `residual-rl imitate`"
            )
        for name in names:
            shape = [] if name == "obs_clip" else [obs_dim if name.startswith("obs") else action_dim]
            if list(state[name].shape) != shape:
                raise CheckpointError(f"{where}: {name} has shape {list(state[name].shape)}; expected {shape}")
        return cls(*(state[name] for name in names))
