"""PickBox-v1: put a box into a basket."""

import torch
from torch import Tensor

from residual_rl.errors import UnknownNameError
from residual_rl.robots.cartesian_goals import GoalsSpec, register_goals
from residual_rl.tasks.maniskill.goals.pick_and_place import PickAndPlace
from residual_rl.tasks.maniskill.pick_box.layouts import LAYOUTS
from residual_rl.types import Obs


class PickBoxGoals(PickAndPlace):
    """Pick the box, carry it over the basket's rim, and drop it."""

    inputs = {"obj_pose": (7,), "goal_pos": (3,), "is_grasped": (1,), "obj_half_size": (1,)}  # noqa: RUF012
    near = 0.008

    def __init__(self, robot: str):
        super().__init__(robot)
        if robot not in LAYOUTS:
            raise UnknownNameError("robot of PickBox-v1:", robot, LAYOUTS)
        self._layout = LAYOUTS[robot]
        self.lowest_tool = self._layout.lowest_tool

    def object_pose(self, obs: Obs) -> Tensor:
        return obs["obj_pose"]

    def place(self, obs: Obs) -> Tensor:
        return torch.cat([obs["goal_pos"][:, :2], self.carry_height(obs)[:, None]], 1)

    def carry_height(self, obs: Obs) -> Tensor:
        return self._layout.rim_height + self._layout.carry_clearance + obs["obj_half_size"][:, 0]


register_goals(GoalsSpec("PickBox-v1", f"{__name__}:PickBoxGoals"))
