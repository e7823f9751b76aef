"""Padding of observations with constants, for policies that were trained on larger observations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from residual_rl.errors import ConfigError


@dataclass(frozen=True)
class ObsPadding:
    """Constant values inserted into the observation vector of each step."""

    index: int
    """Index of the first value in the padded vector."""
    values: tuple[float, ...]

    def __call__(self, obs: Tensor) -> Tensor:
        """Insert the values into observations: […, O] → […, O + P]."""
        values = torch.tensor(self.values, dtype=obs.dtype, device=obs.device).expand(*obs.shape[:-1], -1)
        return torch.cat([obs[..., : self.index], values, obs[..., self.index :]], -1)

    def erased(self, values: Tensor) -> Tensor:
        """A copy of `values` [O + P], one per element of a padded observation, with 0 for the inserted
        elements."""
        erased = values.clone()
        erased[self.index : self.index + len(self.values)] = 0.0
        return erased


ROBOT_BASE_POSE = ObsPadding(18, (-0.615, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0))
"""The pose of Panda's base, position [m] and quaternion (w, x, y, z), after 9 joint positions and 9 joint
velocities. Flat states of ManiSkill 2 include it, those of ManiSkill 3 do not: 50 against 43 numbers in peg
insertion. These are its values in all tabletop tasks; zeros would be another position and an invalid
quaternion."""


def padding_to(size: int | None, obs_dim: int) -> ObsPadding | None:
    """The padding from `obs_dim` to `size` with the robot's base pose, or None if `size` is None.

    Raises `ConfigError` with both sizes if the base pose does not make up the difference.
    """
    if size is None:
        return None
    padding = ROBOT_BASE_POSE
    if obs_dim < padding.index or size != obs_dim + len(padding.values):
        raise ConfigError(
            f"pad_obs_to is {size}, but the observations have size {obs_dim}: padding inserts the robot's"
            f" base pose ({len(padding.values)} numbers) at index {padding.index}, so pad_obs_to must be"
            f" {len(padding.values)} more than the size of the observations, which must be at least"
            f" {padding.index}"
        )
    return padding
