"""StackCube-v1: put one cube on another."""

import torch
from torch import Tensor

from residual_rl.robots.cartesian_goals import GoalsSpec, register_goals
from residual_rl.tasks.maniskill.goals.pick_and_place import PickAndPlace
from residual_rl.types import Obs

_SIZE = 0.04
"""Edge length of the cubes [m]."""
_CLEARANCE = 0.025
"""Height above the lower cube at which the other is carried [m]."""


class StackCubeGoals(PickAndPlace):
    """Pick up cube A and put it on cube B."""

    inputs = {"cubeA_pose": (7,), "cubeB_pose": (7,)}  # noqa: RUF012
    placed = 0.006

    def object_pose(self, obs: Obs) -> Tensor:
        return obs["cubeA_pose"]

    def place(self, obs: Obs) -> Tensor:
        return obs["cubeB_pose"][:, :3] + torch.tensor([0.0, 0.0, _SIZE]).to(obs["cubeB_pose"])

    def carry_height(self, obs: Obs) -> Tensor:
        return obs["cubeB_pose"][:, 2] + _SIZE + _CLEARANCE


register_goals(GoalsSpec("StackCube-v1", f"{__name__}:StackCubeGoals"))
