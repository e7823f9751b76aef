"""PickCube-v1: pick up a cube and hold it at a point."""

from torch import Tensor

from residual_rl.robots.cartesian_goals import GoalsSpec, register_goals
from residual_rl.tasks.maniskill.goals.pick_and_place import PickAndPlace
from residual_rl.types import Obs


class PickCubeGoals(PickAndPlace):
    """Reach, grasp, and move straight to the goal, where the gripper stays closed."""

    inputs = {"obj_pose": (7,), "goal_pos": (3,), "is_grasped": (1,)}  # noqa: RUF012

    def object_pose(self, obs: Obs) -> Tensor:
        return obs["obj_pose"]

    def place(self, obs: Obs) -> Tensor:
        return obs["goal_pos"]

    def carry_height(self, obs: Obs) -> Tensor:
        return obs["goal_pos"][:, 2]

    def releases(self) -> bool:
        return False


register_goals(GoalsSpec("PickCube-v1", f"{__name__}:PickCubeGoals"))
