"""The quantities of a task that a real arm does not measure, from those that it does."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_rl.envs.task import Quantities
from residual_rl.robots.arm_driver import Pose
from residual_rl.robots.kinematics import KinematicChain


def arm_quantities(
    joint_position: Tensor, joint_velocity: Tensor, joint_names: tuple[str, ...], kinematics: KinematicChain
) -> Quantities:
    """`joint_position`, `joint_velocity` and `ee_position`, float64 [B, …], of arms with the joints
    `joint_names`; the tool is that of `kinematics`, whose joints are among them."""
    index = [joint_names.index(name) for name in kinematics.joint_names]
    _, tool = kinematics.forward(joint_position[:, index].to(kinematics.axis.dtype))
    return {
        "joint_position": joint_position.double(),
        "joint_velocity": joint_velocity.double(),
        "ee_position": tool[:, :3, 3].double(),
    }


def pose_quantities(name: str, pose: Pose | None, is_new: bool, num_rows: int) -> Quantities:
    """`NAME_position` [B, 3] and `NAME_quaternion` [B, 4], NaN without a pose, and `NAME_seen` [B], 1 for a
    pose that `is_new` and 0 for one of an earlier step."""
    position, quaternion = torch.full((3,), torch.nan), torch.full((4,), torch.nan)
    if pose is not None:
        position, quaternion = torch.as_tensor(pose.position), torch.as_tensor(pose.quaternion)
    return {
        f"{name}_position": position.double().expand(num_rows, -1),
        f"{name}_quaternion": quaternion.double().expand(num_rows, -1),
        f"{name}_seen": torch.full((num_rows,), float(is_new)),
    }
