"""The SO-101 follower arm as a `mujoco.MjSpec`: measured kinematics and inertia, primitive visual shapes.

Sources of the values: TheRobotStudio/SO-ARM100 (`Simulation/SO101`, "new calibration": each joint's zero is
the middle of its range) and google-deepmind/mujoco_menagerie (`robotstudio_so101`). Units: m, rad, kg, kg
m^2, N m. Quaternions are (w, x, y, z).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from residual_rl.tasks.so101_paper.robot_visuals import add_visuals
from residual_rl.utils.mujoco_library import mujoco


@dataclass(frozen=True)
class ServoCfg:
    """Constants of a Feetech STS3215 servo (7.4 V) under LeRobot's position control."""

    kp: float
    """Position gain [N m/rad]."""
    force_limit: float
    """Largest torque [N m], in both directions."""
    kv: float = 2.731
    """Velocity gain [N m s/rad]."""
    damping: float = 0.60
    """Viscous friction of the joint [N m s/rad]."""
    frictionloss: float = 0.052
    """Dry friction of the joint [N m]."""
    armature: float = 0.028
    """Rotor inertia seen at the joint [kg m^2]."""


SERVO_IDENTIFIED = ServoCfg(kp=998.22, force_limit=2.94)
"""Newer identification, at servo P gain 16."""
SERVO_OLD = ServoCfg(kp=17.8, force_limit=3.35)
"""Older constants: the arm sags by about 0.03 rad under its own weight at full reach."""


@dataclass(frozen=True)
class Link:
    """A body: its frame in its parent, the hinge joint about its z axis, and its inertia about the centre of
    mass."""

    name: str
    parent: str | None
    pos: tuple[float, float, float]
    quat: tuple[float, float, float, float]
    joint: str | None
    range: tuple[float, float]
    mass: float
    com: tuple[float, float, float]
    inertia: tuple[float, float, float, float, float, float]
    """Ixx, Iyy, Izz, Ixy, Ixz, Iyz."""


_H = 0.5**0.5  # 0.707107 in the sources

LINKS: tuple[Link, ...] = (
    Link(
        "base", None, (0, 0, 0), (1, 0, 0, 0), None, (0, 0),
        0.147, (0.0137179, -0.0000520, 0.0334843),
        (1.14686e-4, 1.36117e-4, 1.30364e-4, -4.59787e-7, 4.97151e-6, 9.75275e-8),
    ),
    Link(
        "shoulder", "base", (0.0388353, 0, 0.0624), (0, 0, -1, 0), "shoulder_pan", (-1.91986, 1.91986),
        0.100006, (-0.0307604, -0.0000167, -0.0252713),
        (8.3759e-5, 8.10403e-5, 2.39783e-5, 7.55525e-8, -1.16342e-6, 1.54663e-7),
    ),
    Link(
        "upper_arm", "shoulder", (-0.0303992, -0.0182778, -0.0542), (0.5, -0.5, -0.5, -0.5),
        "shoulder_lift", (-1.74533, 1.74533),
        0.103, (-0.0898471, -0.0083822, 0.0184089),
        (4.08002e-5, 1.47318e-4, 1.42487e-4, -1.97819e-5, -4.03016e-8, 8.97326e-9),
    ),
    Link(
        "lower_arm", "upper_arm", (-0.11257, -0.028, 0), (_H, 0, 0, _H), "elbow_flex", (-1.69, 1.69),
        0.104, (-0.0980701, 0.0032438, 0.0182831),
        (2.87438e-5, 1.59844e-4, 1.4529e-4, 7.41152e-6, 1.26409e-6, -4.90188e-8),
    ),
    Link(
        "wrist", "lower_arm", (-0.1349, 0.0052, 0), (_H, 0, 0, -_H), "wrist_flex", (-1.65806, 1.65806),
        0.079, (-0.0001033, -0.0386143, 0.0281156),
        (3.68263e-5, 2.5391e-5, 2.1e-5, 1.7893e-8, -5.28128e-8, 3.6412e-6),
    ),
    Link(
        "gripper", "wrist", (0, -0.0611, 0.0181), (0.0172091, -0.0172091, 0.706897, 0.706897),
        "wrist_roll", (-2.74385, 2.84121),
        0.087, (0.0002136, 0.0002451, -0.025187),
        (2.75087e-5, 4.33657e-5, 3.45059e-5, -3.35241e-7, -5.7352e-6, -5.17847e-8),
    ),
    Link(
        "moving_jaw", "gripper", (0.0202, 0.0188, -0.0234), (_H, _H, 0, 0), "gripper", (-0.174533, 1.74533),
        0.012, (-0.0015750, -0.0300244, 0.0192755),
        (6.61427e-6, 1.89032e-6, 5.28738e-6, -3.19807e-7, -5.90717e-9, -1.09945e-7),
    ),
)  # fmt: skip

JOINTS: tuple[str, ...] = tuple(link.joint for link in LINKS if link.joint)
"""The six joints from the base to the gripper, which is the order of positions, targets and actions."""

EE_SITE = "gripperframe"
"""The end-effector site, between the fingertips; its x axis points along the fingers."""
MOVING_TIP_SITE = "moving_jaw_tip"
"""Site at the tip of the moving jaw, used only to compare the sixth joint with the reference kinematics."""

HOME: tuple[float, ...] = (0.0, -0.45097, 0.42976, 1.41748, 0.0, -0.17)
"""Joint angles of the home pose [rad]: `gripperframe` at (0.20, 0, 0.08), fingers 80° downwards, gripper
closed.

At a height of 0.12 m the wrist would exceed its limit.
"""


def build_robot(servo: ServoCfg = SERVO_IDENTIFIED) -> mujoco.MjSpec:
    """The arm with its base at the origin and one position actuator per joint of the same name. It has no
    contacts."""
    spec = mujoco.MjSpec()
    spec.modelname = "so101"
    spec.compiler.degree = False
    bodies: dict[str, mujoco.MjsBody] = {}
    for link in LINKS:
        parent = bodies[link.parent] if link.parent else spec.worldbody
        body = parent.add_body(name=link.name, pos=link.pos, quat=link.quat)
        body.explicitinertial = True
        body.mass, body.ipos, body.fullinertia = link.mass, link.com, link.inertia
        if link.joint:
            body.add_joint(
                name=link.joint,
                type=mujoco.mjtJoint.mjJNT_HINGE,
                axis=(0, 0, 1),
                range=link.range,
                limited=mujoco.mjtLimited.mjLIMITED_TRUE,
                damping=servo.damping,
                frictionloss=servo.frictionloss,
                armature=servo.armature,
            )
        bodies[link.name] = body
    bodies["gripper"].add_site(
        name=EE_SITE,
        pos=(-0.0079, -0.000218, -0.098127),
        quat=(_H, 0, _H, 0),
        size=(0.002, 0.002, 0.002),
        group=5,
    )
    bodies["moving_jaw"].add_site(
        name=MOVING_TIP_SITE, pos=(-0.012, -0.078, 0.0192), size=(0.002, 0.002, 0.002), group=5
    )
    add_visuals(spec, bodies)
    add_servos(spec, servo, {link.joint: link.range for link in LINKS if link.joint})
    return spec


def add_servos(spec: mujoco.MjSpec, servo: ServoCfg, ranges: Mapping[str, tuple[float, ...]]) -> None:
    """Add a position actuator to each of the six joints. Its control is the joint target [rad]."""
    for name in JOINTS:
        actuator = spec.add_actuator(
            name=name,
            target=name,
            trntype=mujoco.mjtTrn.mjTRN_JOINT,
            ctrlrange=ranges[name],
            ctrllimited=mujoco.mjtLimited.mjLIMITED_TRUE,
            forcerange=(-servo.force_limit, servo.force_limit),
            forcelimited=mujoco.mjtLimited.mjLIMITED_TRUE,
        )
        actuator.set_to_position(kp=servo.kp, kv=servo.kv)
