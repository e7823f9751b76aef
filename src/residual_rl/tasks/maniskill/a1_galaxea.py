"""The Galaxea A1 arm with its parallel gripper, as ManiSkill's robot `a1_galaxea`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import sapien
import torch
from mani_skill.agents.base_agent import BaseAgent, Keyframe
from mani_skill.agents.controllers import (
    PDEEPosControllerConfig,
    PDEEPoseControllerConfig,
    PDJointPosControllerConfig,
    PDJointPosMimicController,
    PDJointPosMimicControllerConfig,
    PDJointPosVelControllerConfig,
    PDJointVelControllerConfig,
)
from mani_skill.agents.registration import register_agent
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils.structs import Actor, Link, Pose
from torch import Tensor

ARM_JOINTS = tuple(f"arm_joint{number}" for number in range(1, 7))
FINGER_JOINTS = ("gripper1_axis", "gripper2_axis")
FINGER_RANGE = (-0.03, 0.025)
"""Range of the finger joints [m], from open to closed: their axes point inwards."""
_DRIVE = {"stiffness": 1e3, "damping": 1e2, "force_limit": 100.0}


class OpeningController(PDJointPosMimicController):
    """Moves both fingers with one action: 1 opens and -1 closes, as in ManiSkill's Panda.

    Positive joint positions close the gripper, so the action is negated.
    """

    def _preprocess_action(self, action: Tensor) -> Tensor:
        position: Tensor = super()._preprocess_action(-action)
        return position


@dataclasses.dataclass
class OpeningControllerConfig(PDJointPosMimicControllerConfig):
    """Settings of `OpeningController`. Actions must be normalised, so that they can be negated."""

    controller_cls = OpeningController


@register_agent()
class A1Galaxea(BaseAgent):
    """The arm with six joints and a gripper with two fingers.

    The z axis of the tool frame points out of the gripper, the y axis along the movement of the fingers.
    Drive parameters are those commonly used for this arm in ManiSkill. Self-collisions are disabled.
    """

    uid = "a1_galaxea"
    urdf_path = str(Path(__file__).with_suffix(".urdf"))
    urdf_config: ClassVar[dict[str, Any]] = {
        "_materials": {"gripper": {"static_friction": 2.0, "dynamic_friction": 2.0, "restitution": 0.0}},
        "link": {
            name: {"material": "gripper", "patch_radius": 0.1, "min_patch_radius": 0.1}
            for name in ("left_finger", "right_finger")
        },
    }
    disable_self_collisions = True
    arm_joint_names: ClassVar[list[str]] = list(ARM_JOINTS)
    keyframes: ClassVar[dict[str, Keyframe]] = {
        "home": Keyframe(
            pose=sapien.Pose(), qpos=np.append(np.deg2rad([42, 45, -48, 80, -35, 15]), [-0.01, -0.01])
        ),
        # The gripper points down, 0.35 m in front of the base and 0.2 m above it.
        "ready": Keyframe(
            pose=sapien.Pose(), qpos=np.append(np.deg2rad([0, 103.56, -61.38, 90, -47.82, 0]), [-0.01, -0.01])
        ),
    }

    @property
    def _controller_configs(self) -> dict[str, Any]:
        arm, drive = self.arm_joint_names, _DRIVE
        end = {"joint_names": arm, "ee_link": "tcp", "urdf_path": self.urdf_path, **drive}
        step = {"lower": -0.1, "upper": 0.1, "use_delta": True}
        shift: dict[str, Any] = {"pos_lower": -0.1, "pos_upper": 0.1}
        turn: dict[str, Any] = {"rot_lower": -0.1, "rot_upper": 0.1}
        controllers = {
            "pd_joint_delta_pos": PDJointPosControllerConfig(arm, **step, **drive),
            "pd_joint_pos": PDJointPosControllerConfig(arm, None, None, **drive, normalize_action=False),
            "pd_ee_delta_pos": PDEEPosControllerConfig(**shift, **end),
            "pd_ee_delta_pose": PDEEPoseControllerConfig(**shift, **turn, **end),
            "pd_ee_pose": PDEEPoseControllerConfig(
                pos_lower=-2.0, pos_upper=2.0, **end, use_delta=False, normalize_action=False
            ),
            "pd_joint_target_delta_pos": PDJointPosControllerConfig(arm, **step, **drive, use_target=True),
            "pd_ee_target_delta_pos": PDEEPosControllerConfig(**shift, **end, use_target=True),
            "pd_ee_target_delta_pose": PDEEPoseControllerConfig(**shift, **turn, **end, use_target=True),
            "pd_joint_vel": PDJointVelControllerConfig(
                arm, -1.0, 1.0, drive["damping"], drive["force_limit"]
            ),
            "pd_joint_pos_vel": PDJointPosVelControllerConfig(
                arm, None, None, **drive, normalize_action=False
            ),
            "pd_joint_delta_pos_vel": PDJointPosVelControllerConfig(arm, **step, **drive),
        }
        return {mode: {"arm": config, "gripper": self._gripper()} for mode, config in controllers.items()}

    def _gripper(self) -> OpeningControllerConfig:
        first, second = FINGER_JOINTS
        return OpeningControllerConfig(
            list(FINGER_JOINTS), *FINGER_RANGE, **_DRIVE, mimic={second: {"joint": first}}
        )

    @property
    def _sensor_configs(self) -> list[CameraConfig]:
        # ManiSkill's cameras look along x with z up. This one looks along the link's z, with the fingers at
        # the bottom of the image.
        pose = sapien.Pose(q=[0.0, math.sqrt(0.5), 0.0, math.sqrt(0.5)])
        mount = self.robot.links_map["camera"]
        return [
            CameraConfig(
                "hand_camera", pose, 224, 224, fov=math.radians(69), near=0.01, far=100.0, mount=mount
            )
        ]

    def _after_init(self) -> None:
        links = self.robot.links_map
        self.tcp: Link = links["tcp"]
        self.finger1_link: Link = links["left_finger"]
        self.finger2_link: Link = links["right_finger"]

    @property
    def tcp_pos(self) -> Tensor:
        """[B, 3]: position of the tool centre point [m]."""
        return self.tcp.pose.p

    @property
    def tcp_pose(self) -> Pose:
        """Pose of the tool centre point."""
        return self.tcp.pose

    def is_grasping(self, object: Actor, min_force: float = 0.5, max_angle: float = 85.0) -> Tensor:
        """[B] bool: whether both fingers press on `object`.

        Each contact force must be at least `min_force` [N] and within `max_angle` [deg] of the direction in
        which the finger opens.
        """
        grasping = torch.ones(self.scene.num_envs, dtype=torch.bool, device=self.robot.device)
        for finger, side in ((self.finger1_link, 1.0), (self.finger2_link, -1.0)):
            force = self.scene.get_pairwise_contact_forces(finger, object)
            outwards = side * finger.pose.to_transformation_matrix()[:, :3, 1]
            strength = force.norm(dim=1)
            grasping &= (strength >= min_force) & (
                (force * outwards).sum(1) >= math.cos(math.radians(max_angle)) * strength
            )
        return grasping

    def is_static(self, threshold: float = 0.2) -> Tensor:
        """[B] bool: whether the speed of each arm joint is at most `threshold` [rad/s]."""
        return self.robot.get_qvel()[:, : len(ARM_JOINTS)].abs().amax(1) <= threshold
