"""Constant numbers put into observations, for policies that were made where an observation had more numbers than it has here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from residual_rl.errors import ConfigError


@dataclass(frozen=True)
class ObsPadding:
    """Values that are put into the observation vector of each step."""

    index: int
    """Where the first of them is, counted in the padded vector."""
    values: tuple[float, ...]

    def __call__(self, obs: Tensor) -> Tensor:
        """Observations […, O] with the values in them: […, O + P]."""
        values = torch.tensor(self.values, dtype=obs.dtype, device=obs.device).expand(*obs.shape[:-1], -1)
        return torch.cat([obs[..., : self.index], values, obs[..., self.index :]], -1)

    def erased(self, values: Tensor) -> Tensor:
        """What is known of each number of a padded observation, [O + P], with 0 for those that were put in."""
        erased = values.clone()
        erased[self.index : self.index + len(self.values)] = 0.0
        return erased


ROBOT_BASE_POSE = ObsPadding(18, (-0.615, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0))
"""The pose of Panda's base, position [m] and quaternion (w, x, y, z), behind the 9 joint positions and 9 joint velocities. Flat states of
ManiSkill 2 hold it and those of ManiSkill 3 do not: 50 numbers against 43 for peg insertion. The robot stands there in all of its tabletop
tasks; zeros would tell a policy of another place, and of a quaternion that is none."""


def padding_to(size: int | None, obs_dim: int) -> ObsPadding | None:
    """What makes observations of `obs_dim` numbers those of `size`: the robot's base pose, or nothing where `size` is None.

    Raises `ConfigError` naming both sizes where it does not.
    """
    if size is None:
        return None
    padding = ROBOT_BASE_POSE
    if obs_dim < padding.index or size != obs_dim + len(padding.values):
        raise ConfigError(
            f"pad_obs_to is {size} and observations have {obs_dim} numbers: padding puts in the robot's base pose, {len(padding.values)} "
            f"numbers at index {padding.index}, and so makes {padding.index + len(padding.values)} or more of {padding.index} or more"
        )
    return padding
