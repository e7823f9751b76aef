"""PushCube-v1: push a cube to a point on the table."""

import torch
from torch import Tensor

from residual_rl.robots.cartesian_goals import CartesianGoals, GoalsSpec, ToolGoal, funnel, register_goals
from residual_rl.types import Obs

REACH, MOVE = range(2)
_BEHIND = 0.05
"""Distance behind the cube's centre at which the tool is lowered [m]."""
_HOVER = 0.08
"""Height from which the tool is lowered [m]."""


class PushCubeGoals(CartesianGoals):
    """Lower the tool behind the cube and push it with closed fingers."""

    inputs = {"obj_pose": (7,), "goal_pos": (3,)}  # noqa: RUF012
    phases = ("reach", "move")
    grips = False

    def advance(self, obs: Obs, phase: Tensor, steps: Tensor) -> Tensor:  # noqa: ARG002
        tool, cube, along = self._places(obs)
        from_cube = (tool - cube)[:, :2]
        ahead = (from_cube * along).sum(1)
        beside = (from_cube - ahead[:, None] * along).norm(dim=1)
        there = (cube[:, 2] - tool[:, 2]).abs() < 0.015
        ready = there & (beside < 0.01) & (ahead < -0.02)
        passed = (ahead > -0.015) | (beside > 0.025)
        phase = torch.where((phase == REACH) & ready, MOVE, phase)
        return torch.where((phase == MOVE) & passed, REACH, phase)

    def goal(self, obs: Obs, phase: Tensor, steps: Tensor) -> ToolGoal:  # noqa: ARG002
        tool, cube, along = self._places(obs)
        behind = cube.clone()
        behind[:, :2] -= _BEHIND * along
        push = torch.cat([obs["goal_pos"][:, :2], cube[:, 2:]], 1)
        position = torch.where((phase == MOVE)[:, None], push, funnel(behind, tool, _HOVER))
        return ToolGoal(position, torch.zeros_like(phase, dtype=torch.bool))

    def _places(self, obs: Obs) -> tuple[Tensor, Tensor, Tensor]:
        """The tool [b, 3], the cube [b, 3], and the direction [b, 2] from the cube to the goal."""
        tool, cube = obs["tcp_pose"][:, :3], obs["obj_pose"][:, :3]
        way = (obs["goal_pos"] - cube)[:, :2]
        return tool, cube, way / way.norm(dim=1, keepdim=True).clamp(min=1e-9)


register_goals(GoalsSpec("PushCube-v1", f"{__name__}:PushCubeGoals"))
