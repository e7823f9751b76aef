"""The scene of `so101-paper`: the arm, a black table, a taped rectangle, and a sheet of paper.

All contacts are explicit pairs, and the contact masks of all geoms are 0. Otherwise MuJoCo would use the
maximum of the friction of two geoms, so a sheet with 0.6 would hide the table's 0.3, and irrelevant pairs
would cost time. Units: m, rad, kg, s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval

from residual_rl.errors import ModelError
from residual_rl.tasks.so101_paper.config import SHEET_HALF_SIZE
from residual_rl.tasks.so101_paper.custom_robot import load_robot
from residual_rl.tasks.so101_paper.robot import (
    EE_SITE,
    HOME,
    JOINTS,
    SERVO_IDENTIFIED,
    SERVO_OLD,
    build_robot,
)
from residual_rl.utils.mujoco_library import mujoco
from residual_rl.utils.text import one_line
from residual_rl.utils.validation import CheckedCfg, NonNegativeFloat, PositiveFloat

FINGERTIP_RADIUS = 0.008
"""Radius of the fingertip [m]."""
SERVOS = {"identified": SERVO_IDENTIFIED, "old": SERVO_OLD}

_BOX, _PLANE, _SPHERE = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_SPHERE
_SINK = 0.002
"""Distance of the visible table and tape below the contact plane [m]; a pressed sheet sinks by 1 mm and would
otherwise disappear."""
_TIP_FLOOR = 0.005
"""Distance of the fingertip's floor below the table [m].

With contact on the table itself, the load would bypass the sheet, which sinks by up to 4 mm when it is
pressed at an edge. Without a floor, the finger goes below the table beside the sheet and lifts it from
underneath.
"""
_TAPE_HALF_THICKNESS = 0.00001
_PATCH_HALF_HEIGHT = 0.01
_PATCH_MARGIN = 0.002
"""Distance of the patch's top below the table, and the contact margin that makes up for it [m].

The patch carries the sheet as if it were flush with the table, but has no side wall. Pressed with 18 N, a
sheet that came from outside was caught by the edge of a flush box and thrown off.
"""


FieldOfView = Annotated[float, Interval(ge=1.0, le=170.0)]
"""Vertical field of view of a camera [deg]."""


@dataclass(frozen=True)
class SceneCfg(CheckedCfg):
    """Settings of the scene."""

    robot_xml: str | None = None
    """MJCF file of your SO-101, for example the official one with meshes. None: the built-in arm."""
    servo: Literal["identified", "old"] = "identified"
    """Servo constants of the built-in arm, and of a model file without actuators: `identified` or `old`."""
    tape_center: tuple[float, float] = (0.22, 0.0)
    """Centre of the taped rectangle on the table [m]."""
    tolerance: NonNegativeFloat = 0.02
    """Margin between the sheet and the inside of the tape on each side [m]."""
    tape_width: PositiveFloat = 0.02
    """Width of the tape [m]."""
    sheet_mass: PositiveFloat = 0.005
    """Mass of the sheet [kg]."""
    friction_table: PositiveFloat = 0.30
    """Sliding friction of the sheet on the table."""
    friction_tape: PositiveFloat = 0.90
    """Sliding friction of the sheet on the sticky patch under the tape."""
    friction_tip: PositiveFloat = 1.2
    """Sliding friction of the fingertip on the sheet."""
    torsion_tip: NonNegativeFloat = 0.05
    """Torsional friction of the fingertip on the sheet [m]; an effective value, since the model's sheet is
    rigid."""
    timestep: PositiveFloat = 0.001
    """Physics step [s]."""
    top_fovy: FieldOfView = 140.0
    """Vertical field of view of the camera `top` [deg]; 70 crops to the workspace, four times as large."""
    wrist_fovy: FieldOfView = 140.0
    """Vertical field of view of the camera `wrist` [deg]; the usual camera module has about 75."""

    @property
    def tape_inner_half_size(self) -> tuple[float, float]:
        """Half size of the rectangle inside the tape [m]."""
        return SHEET_HALF_SIZE[0] + self.tolerance, SHEET_HALF_SIZE[1] + self.tolerance

    @property
    def tape_outer_half_size(self) -> tuple[float, float]:
        """Half size of the tape's outer rectangle, which is also that of the sticky patch [m]."""
        inner = self.tape_inner_half_size
        return inner[0] + self.tape_width, inner[1] + self.tape_width


def build_scene(cfg: SceneCfg | None = None) -> mujoco.MjModel:
    """Compile the scene.

    `qpos` has the six joints followed by the sheet's pose, `ctrl` the six joint targets. Keyframe `home` is
    the start.

    Raises:
        ModelError: the user's robot is not an SO-101, or cannot be combined with the scene.
    """
    cfg = cfg or SceneCfg()
    spec = build_spec(cfg)
    with _robot_named_in_errors(cfg):
        return spec.compile()


def build_spec(cfg: SceneCfg) -> mujoco.MjSpec:
    """The scene as an editable `MjSpec`, which a task may extend before compiling it."""
    spec = load_robot(cfg.robot_xml, SERVOS[cfg.servo]) if cfg.robot_xml else build_robot(SERVOS[cfg.servo])
    spec.modelname = "so101_paper"
    for geom in spec.geoms:
        geom.contype = geom.conaffinity = 0
    with _robot_named_in_errors(cfg):
        _set_options(spec, cfg)
        _add_visuals(spec)
        _add_table(spec, cfg)
        _add_sheet(spec, cfg)
        _add_fingertip(spec)
        _add_pairs(spec, cfg)
        _add_cameras(spec, cfg)
        _add_sensors(spec)
        spec.add_key(name="home", qpos=[*HOME, 0.275, 0.0, SHEET_HALF_SIZE[2], 1, 0, 0, 0], ctrl=HOME)
    return spec


@contextmanager
def _robot_named_in_errors(cfg: SceneCfg) -> Iterator[None]:
    """Name the user's robot in MuJoCo's errors, such as a name that the scene uses too."""
    try:
        yield
    except ValueError as error:
        if cfg.robot_xml is None:
            raise
        reason = one_line(error)
        raise ModelError(
            f"robot model {cfg.robot_xml}: it cannot be combined with the scene: {reason}"
        ) from error


def _set_options(spec: mujoco.MjSpec, cfg: SceneCfg) -> None:
    spec.option = mujoco.MjSpec().option  # a user's file may have set any of them
    spec.compiler.discardvisual = False  # without contact masks, MuJoCo takes most geoms for visual ones
    option = spec.option
    option.timestep = cfg.timestep
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    option.impratio = 10
    option.ls_iterations = 20  # with 10 the sheet sometimes flew off


def _tape_layout(cfg: SceneCfg) -> dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]]:
    """Position and half size [m] of the four tape strips and the patch, by geom name."""
    x, y = cfg.tape_center
    inner_x, inner_y = cfg.tape_inner_half_size
    outer_x, outer_y = cfg.tape_outer_half_size
    half = cfg.tape_width / 2
    return {
        "tape_far": ((x + inner_x + half, y, -_SINK), (half, outer_y, _TAPE_HALF_THICKNESS)),
        "tape_near": ((x - inner_x - half, y, -_SINK), (half, outer_y, _TAPE_HALF_THICKNESS)),
        "tape_left": ((x, y + inner_y + half, -_SINK), (inner_x, half, _TAPE_HALF_THICKNESS)),
        "tape_right": ((x, y - inner_y - half, -_SINK), (inner_x, half, _TAPE_HALF_THICKNESS)),
        "tape_patch": ((x, y, -_PATCH_MARGIN - _PATCH_HALF_HEIGHT), (outer_x, outer_y, _PATCH_HALF_HEIGHT)),
    }


def _add_table(spec: mujoco.MjSpec, cfg: SceneCfg) -> None:
    worldbody = spec.worldbody
    black = spec.add_material(
        name="table", rgba=(0.035, 0.035, 0.04, 1), specular=0.05, shininess=0.05, reflectance=0
    )
    red = spec.add_material(name="tape", rgba=(0.80, 0.06, 0.05, 1), specular=0.1, shininess=0.1)
    unseen = {"rgba": (0, 0, 0, 0), "group": 4}
    worldbody.add_geom(name="table", type=_PLANE, size=(1, 1, 0.05), contype=0, conaffinity=0, **unseen)
    worldbody.add_geom(
        name="tip_floor",
        type=_PLANE,
        pos=(0, 0, -_TIP_FLOOR),
        size=(1, 1, 0.05),
        contype=0,
        conaffinity=0,
        **unseen,
    )
    worldbody.add_geom(
        name="table_top",
        type=_PLANE,
        pos=(0.25, 0, -_SINK),
        size=(1, 1, 0.05),
        contype=0,
        conaffinity=0,
        material=black.name,
    )
    for name, (pos, size) in _tape_layout(cfg).items():
        looks = unseen if name == "tape_patch" else {"material": red.name}
        worldbody.add_geom(name=name, type=_BOX, pos=pos, size=size, contype=0, conaffinity=0, **looks)


def _add_sheet(spec: mujoco.MjSpec, cfg: SceneCfg) -> None:
    paper = spec.add_material(name="paper", rgba=(0.88, 0.88, 0.86, 1), specular=0.05, shininess=0.05)
    body = spec.worldbody.add_body(name="sheet", pos=(0.275, 0, SHEET_HALF_SIZE[2]))
    body.add_freejoint(name="sheet_free")  # a free joint takes no defaults from a user's file
    body.add_geom(
        name="sheet",
        type=_BOX,
        size=SHEET_HALF_SIZE,
        mass=cfg.sheet_mass,
        condim=3,
        contype=0,
        conaffinity=0,
        material=paper.name,
    )


def _add_fingertip(spec: mujoco.MjSpec) -> None:
    site = spec.site(EE_SITE)
    rubber = spec.add_material(name="rubber", rgba=(0.25, 0.25, 0.28, 1), specular=0.2, shininess=0.2)
    site.parent.add_geom(
        name="fingertip",
        type=_SPHERE,
        size=(FINGERTIP_RADIUS, 0, 0),
        pos=site.pos,
        mass=0,
        contype=0,
        conaffinity=0,
        material=rubber.name,
    )


def _add_pairs(spec: mujoco.MjSpec, cfg: SceneCfg) -> None:
    """Add all contact pairs, with every value given because a user's file may define other defaults."""
    rolling = (0.0001, 0.0001)
    for name, geom, other, mu, margin in (
        ("sheet_table", "sheet", "table", cfg.friction_table, 0.0),
        ("sheet_tape", "sheet", "tape_patch", cfg.friction_tape, _PATCH_MARGIN),
        ("tip_floor", "fingertip", "tip_floor", cfg.friction_table, 0.0),
    ):
        spec.add_pair(
            name=name,
            geomname1=geom,
            geomname2=other,
            condim=3,
            friction=(mu, mu, 0.005, *rolling),
            solref=(0.005, 1),
            solimp=(0.9, 0.95, 0.001, 0.5, 2),
            margin=margin,
            gap=0,
        )
    spec.add_pair(
        name="tip_sheet",
        geomname1="fingertip",
        geomname2="sheet",
        condim=4,
        friction=(cfg.friction_tip, cfg.friction_tip, cfg.torsion_tip, *rolling),
        solref=(0.005, 1),
        solimp=(0.99, 0.999, 0.001, 0.5, 2),
        margin=0,
        gap=0,
    )


def _add_cameras(spec: mujoco.MjSpec, cfg: SceneCfg) -> None:
    spec.worldbody.add_camera(
        name="top", pos=(0.24, 0, 0.34), fovy=cfg.top_fovy, quat=(0.5**0.5, 0, 0, -(0.5**0.5))
    )
    tilt = -0.57 / 2  # half the angle about x
    spec.body("gripper").add_camera(
        name="wrist", pos=(0, 0.055, -0.045), quat=(np.cos(tilt), np.sin(tilt), 0, 0), fovy=cfg.wrist_fovy
    )
    spec.worldbody.add_camera(
        name="scene", fovy=42, **_look_at(eye=(0.62, -0.52, 0.42), target=(0.17, 0.0, 0.08))
    )


def _look_at(eye: tuple[float, float, float], target: tuple[float, float, float]) -> dict[str, Any]:
    """Position and orientation of a camera at `eye` that looks at `target`, upright."""
    back = np.subtract(eye, target)
    right = np.cross((0, 0, 1), back)
    axes = np.stack([right, np.cross(back, right), back])
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, (axes / np.linalg.norm(axes, axis=1, keepdims=True)).T.flatten())
    return {"pos": eye, "quat": quat}


def _add_sensors(spec: mujoco.MjSpec) -> None:
    """Add the sensors, in the order of `sensordata`."""
    kind, site, body = mujoco.mjtSensor, mujoco.mjtObj.mjOBJ_SITE, mujoco.mjtObj.mjOBJ_BODY
    for prefix, joint_sensor in (("jointpos", kind.mjSENS_JOINTPOS), ("jointvel", kind.mjSENS_JOINTVEL)):
        for joint in JOINTS:
            spec.add_sensor(
                name=f"{prefix}_{joint}", type=joint_sensor, objtype=mujoco.mjtObj.mjOBJ_JOINT, objname=joint
            )
    for name, sensor, objtype, objname in (
        ("ee_position", kind.mjSENS_FRAMEPOS, site, EE_SITE),
        ("sheet_position", kind.mjSENS_FRAMEPOS, body, "sheet"),
        ("sheet_quaternion", kind.mjSENS_FRAMEQUAT, body, "sheet"),
    ):
        spec.add_sensor(name=name, type=sensor, objtype=objtype, objname=objname)


def _add_visuals(spec: mujoco.MjSpec) -> None:
    """Add three lights and a grey wall, and set the renderer's options."""
    for name, pos, strength in (
        ("key", (0.8, -0.7, 1.3), 0.45),
        ("fill", (0.7, 0.9, 0.8), 0.30),
        ("back", (-0.8, 0.2, 1.0), 0.30),
    ):
        spec.worldbody.add_light(
            name=name,
            pos=pos,
            dir=np.subtract((0.2, 0, 0.05), pos),
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
            diffuse=(strength,) * 3,
            specular=(strength * 0.4,) * 3,
            ambient=(0.10,) * 3,
            castshadow=name == "key",
        )
    spec.add_texture(
        name="wall",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=(0.30, 0.32, 0.35),
        rgb2=(0.08, 0.085, 0.095),
        width=64,
        height=384,
    )
    visual = spec.visual
    visual.headlight.active = 0
    visual.quality.offsamples = 0
    # Flat faces under directional lights need no subdivision, and rendering time depends on the number of
    # vertices.
    visual.quality.numslices, visual.quality.numstacks, visual.quality.numquads = 16, 8, 1
    visual.global_.offwidth, visual.global_.offheight = 1280, 960
    visual.map.znear = 0.01
    spec.stat.extent, spec.stat.center = 0.6, (0.2, 0, 0.1)
