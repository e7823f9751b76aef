"""A user's own SO-101 model: loaded, checked, and made ready for the scene."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np

from residual_rl.errors import ModelError
from residual_rl.tasks.so101_paper.robot import (
    EE_SITE,
    HOME,
    JOINTS,
    SERVO_IDENTIFIED,
    ServoCfg,
    add_servos,
    build_robot,
)

_HOME_TOLERANCE = 0.05
"""How far from the built-in arm's a model's `gripperframe` may be in the home pose [m]."""


def load_robot(path: str, servo: ServoCfg = SERVO_IDENTIFIED) -> mujoco.MjSpec:
    """Read an MJCF file and check that it is an SO-101.

    It must have the six hinge joints by name and in order and no other joint, a body `gripper`, a site `gripperframe`, and a position
    actuator per joint in the joints' order (or no actuator at all: then each gets a `servo`). In the home pose its
    `gripperframe` must be where the built-in arm has it. What the scene has its own of (planes, lights, cameras, sensors, keyframes,
    contact pairs) is left out.

    Raises:
        ModelError: naming the file, what is missing and what was found; or `servo` is not the default, and the file has its own.
    """
    if not Path(path).is_file():
        raise ModelError(f"robot model {path}: no such file")
    try:
        spec = mujoco.MjSpec.from_file(path)
        model = spec.compile()
        _check_structure(model, path)
        _strip(spec)
        if not spec.actuators:
            add_servos(spec, servo, {name: tuple(model.joint(name).range) for name in JOINTS})
        elif servo != SERVO_IDENTIFIED:
            raise ModelError(
                f"robot model {path}: it has actuators of its own, so no other servo can be chosen; leave --servo out"
            )
        _check_home(spec.compile(), path)
    except (ValueError, mujoco.FatalError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"robot model {path}: MuJoCo cannot read it: {' '.join(str(error).split())}"
        ) from error
    return spec


def _check_structure(model: mujoco.MjModel, path: str) -> None:
    def names(kind: str, count: int) -> list[str]:
        return [getattr(model, kind)(i).name for i in range(count)]

    joints = names("joint", model.njnt)
    missing = [name for name in JOINTS if name not in joints]
    if missing:
        raise ModelError(
            f"robot model {path}: joint(s) {', '.join(missing)} missing; it has: {_listed(joints)}"
        )
    if joints != list(JOINTS):
        raise ModelError(
            f"robot model {path}: joints must be {', '.join(JOINTS)}, in this order and no others; it has: {_listed(joints)}"
        )
    for name, kind in zip(joints, model.jnt_type, strict=True):
        if kind != mujoco.mjtJoint.mjJNT_HINGE:
            raise ModelError(
                f"robot model {path}: joint {name} must be a hinge; it is of type {mujoco.mjtJoint(kind).name}"
            )
    unlimited = [name for name, limited in zip(joints, model.jnt_limited, strict=True) if not limited]
    if unlimited:
        raise ModelError(f"robot model {path}: joint(s) {', '.join(unlimited)} without a range")
    for kind, name, found in (
        ("body", "gripper", names("body", model.nbody)),
        ("site", EE_SITE, names("site", model.nsite)),
    ):
        if name not in found:
            raise ModelError(f"robot model {path}: {kind} {name!r} missing; it has: {_listed(found)}")
    _check_actuators(model, path)


def _check_actuators(model: mujoco.MjModel, path: str) -> None:
    if model.nu == 0:
        return
    on_joint = model.actuator_trntype == mujoco.mjtTrn.mjTRN_JOINT
    driven = [
        model.joint(i).name if ok else "?" for i, ok in zip(model.actuator_trnid[:, 0], on_joint, strict=True)
    ]
    if driven != list(JOINTS):
        raise ModelError(
            f"robot model {path}: needs one actuator per joint, in the order {', '.join(JOINTS)}, or none at all; "
            f"its actuators drive: {_listed(driven)}"
        )
    gain, bias = model.actuator_gainprm[:, 0], model.actuator_biasprm[:, 1]
    servo = (model.actuator_biastype == mujoco.mjtBias.mjBIAS_AFFINE) & (gain > 0) & np.isclose(bias, -gain)
    if not servo.all():
        bad = [model.actuator(int(i)).name for i in np.flatnonzero(~servo)]
        raise ModelError(
            f"robot model {path}: actuator(s) {', '.join(bad)} must be position servos (<position joint=… kp=…>)"
        )


def _strip(spec: mujoco.MjSpec) -> None:
    planes = [geom for geom in spec.worldbody.geoms if geom.type == mujoco.mjtGeom.mjGEOM_PLANE]
    for element in [
        *planes,
        *spec.lights,
        *spec.cameras,
        *spec.sensors,
        *spec.keys,
        *spec.pairs,
        *spec.excludes,
    ]:
        spec.delete(element)


def _check_home(model: mujoco.MjModel, path: str) -> None:
    """Names alone do not show that a model's joint zeros and base are those of the "new calibration"."""
    here, expected = _home_position(model), _home_position(build_robot().compile())
    distance = float(np.linalg.norm(here - expected))
    if distance > _HOME_TOLERANCE:
        raise ModelError(
            f"robot model {path}: in the home pose its {EE_SITE} is at {here.round(3)} m, {distance:.3f} m from where an SO-101 of the "
            '"new calibration" with its base at the origin has it; check joint zeros and base pose'
        )


def _home_position(model: mujoco.MjModel) -> np.ndarray:
    data = mujoco.MjData(model)
    data.qpos[:] = HOME
    mujoco.mj_kinematics(model, data)
    return data.site(EE_SITE).xpos.copy()


def _listed(names: list[str]) -> str:
    return ", ".join(name or "(unnamed)" for name in names) or "none"
