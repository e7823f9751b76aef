"""Description of the arm, the controller and the gripper of a ManiSkill robot."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from residual_rl.robots.arm import Arm

GRIPPER_OPENS: dict[str, float] = {
    "a1_galaxea": 1.0,
    "panda": 1.0,
    "panda_wristcam": 1.0,
    "xarm6_robotiq": -1.0,
    "xarm6_robotiq_wristcam": -1.0,
}
"""The gripper action that opens the gripper, by ManiSkill's robot uid.

Other robot classes may set it as the attribute `gripper_opens`, if their tool axes are as `Arm` documents.
"""
_FRAMES = {"ee_delta_pos": "root_translation", "ee_delta_pose": "root_translation:root_aligned_body_rotation"}


def describe_arm(agent: Any) -> Arm | None:
    """The arm of a ManiSkill robot; None if it has no tool link or no controller named `arm`.

    Args:
        agent: the `BaseAgent` of one robot.
    """
    from mani_skill import format_path
    from mani_skill.utils.structs import Link

    controllers = dict(getattr(agent.controller, "controllers", {}))
    tool = getattr(agent, "tcp", None)
    if "arm" not in controllers or not isinstance(tool, Link):
        return None
    control, scale = _control(controllers["arm"])
    # the columns of the action that belong to each controller, in order
    first = 0
    columns: dict[str, tuple[int, ...]] = {}
    for name, controller in controllers.items():
        size = controller.single_action_space.shape[0]
        columns[name], first = tuple(range(first, first + size)), first + size
    urdf = getattr(agent, "urdf_path", None)
    return Arm(
        robot=agent.uid,
        control=control,
        action_index=columns["arm"],
        action_scale=scale,
        joint_names=tuple(joint.name for joint in controllers["arm"].joints),
        all_joint_names=tuple(joint.name for joint in agent.robot.active_joints),
        moving_joint_names=_joints_to(tool),
        tool_link=tool.name,
        urdf=None if urdf is None else format_path(str(urdf)),
        gripper_index=sum((index for name, index in columns.items() if name.startswith("gripper")), ()),
        gripper_opens=getattr(agent, "gripper_opens", GRIPPER_OPENS.get(agent.uid)),
    )


def _control(
    controller: Any,
) -> tuple[Literal["joint_delta", "ee_delta_pos", "ee_delta_pose"] | None, tuple[float, ...]]:
    """The kind of a controller's actions and the value of an action of 1; (None, ()) for kinds unknown to
    `Arm`."""
    from mani_skill.agents.controllers import PDEEPosController, PDEEPoseController, PDJointPosController

    # exact types only: a subclass may interpret actions differently
    kinds = {
        PDJointPosController: "joint_delta",
        PDEEPosController: "ee_delta_pos",
        PDEEPoseController: "ee_delta_pose",
    }
    kind: Any = kinds.get(type(controller))
    cfg = controller.config
    # only normalised deltas from the measured position, in the frames that `Arm` documents
    if kind is None or not cfg.use_delta or cfg.use_target or not controller._normalize_action:
        return None, ()
    if kind in _FRAMES and (cfg.frame != _FRAMES[kind] or cfg.root_link_name is not None):
        return None, ()
    space = controller._original_single_action_space
    if not np.allclose(space.low, -space.high):
        return None, ()
    # a symmetric range: an action of 1 is its upper bound
    scale = np.array(space.high, np.float64)
    if kind == "ee_delta_pose":  # ManiSkill multiplies rotations by the lower bound, which inverts their sign
        scale[3:] = cfg.rot_lower
    return kind, tuple(scale.tolist())


def _joints_to(link: Any) -> tuple[str, ...]:
    """The active joints that move `link`, from the base to the link."""
    names = []
    # walk up the kinematic tree; fixed joints have no active index
    while link is not None:
        if link.joint is None:
            break
        if link.joint.active_index is not None:
            names.append(link.joint.name)
        link = link.joint.parent_link
    return tuple(reversed(names))
