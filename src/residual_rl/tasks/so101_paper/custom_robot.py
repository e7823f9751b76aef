"""Loads a user's own SO-101 model, checks it and prepares it for the scene."""

from __future__ import annotations

from pathlib import Path

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
from residual_rl.utils.mujoco_library import mujoco
from residual_rl.utils.text import one_line

_HOME_TOLERANCE = 0.05
"""Largest distance between the model's `gripperframe` and the built-in arm's in the home pose [m]."""


def load_robot(path: str, servo: ServoCfg = SERVO_IDENTIFIED) -> mujoco.MjSpec:
    """Read an MJCF file and check that it is an SO-101.

    The model must have exactly the six hinge joints, by name and in order, a body `gripper`, a site
    `gripperframe`, and one position actuator per joint in the same order. If it has no actuators, each joint
    gets a `servo`. In the home pose its `gripperframe` must be where the built-in arm has it. Elements that
    the scene defines itself (planes, lights, cameras, sensors, keyframes, contact pairs) are removed.

    Args:
        path: the MJCF file.
        servo: constants for a model without actuators.

    Raises:
        ModelError: the model does not fit, with the file and the reason; or `servo` is not the default but
            the model has its own actuators.
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
                f"robot model {path} has its own actuators, which --servo cannot change; leave it out"
            )
        _check_home(spec.compile(), path)
    except (ValueError, mujoco.FatalError) as error:
        if isinstance(error, ModelError):
            raise
        reason = one_line(error)
        raise ModelError(f"robot model {path}: MuJoCo cannot read it: {reason}") from error
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
            f"robot model {path}: joints must be exactly {', '.join(JOINTS)}, in this order; "
            f"it has: {_listed(joints)}"
        )
    for name, kind in zip(joints, model.jnt_type, strict=True):
        if kind != mujoco.mjtJoint.mjJNT_HINGE:
            found = mujoco.mjtJoint(kind).name
            raise ModelError(f"robot model {path}: joint {name} must be a hinge; it is of type {found}")
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
            f"robot model {path}: it needs either one actuator per joint, in the order {', '.join(JOINTS)}, "
            f"or none; its actuators drive: {_listed(driven)}"
        )
    gain, bias = model.actuator_gainprm[:, 0], model.actuator_biasprm[:, 1]
    servo = (model.actuator_biastype == mujoco.mjtBias.mjBIAS_AFFINE) & (gain > 0) & np.isclose(bias, -gain)
    if not servo.all():
        bad = [model.actuator(int(i)).name for i in np.flatnonzero(~servo)]
        raise ModelError(
            f"robot model {path}: actuator(s) {', '.join(bad)} must be position servos "
            "(<position joint=… kp=…>)"
        )


def _strip(spec: mujoco.MjSpec) -> None:
    planes = [geom for geom in spec.worldbody.geoms if geom.type == mujoco.mjtGeom.mjGEOM_PLANE]
    contacts = [*spec.pairs, *spec.excludes]
    for element in [*planes, *spec.lights, *spec.cameras, *spec.sensors, *spec.keys, *contacts]:
        spec.delete(element)


def _check_home(model: mujoco.MjModel, path: str) -> None:
    """Check that the model's joint zeros and base pose are those of the "new calibration"."""
    here, expected = _home_position(model), _home_position(build_robot().compile())
    distance = float(np.linalg.norm(here - expected))
    if distance > _HOME_TOLERANCE:
        raise ModelError(
            f"robot model {path}: in the home pose its {EE_SITE} is at {here.round(3)} m, {distance:.3f} m"
            ' from that of an SO-101 of the "new calibration" with its base at the origin; check joint zeros'
            " and base pose"
        )


def _home_position(model: mujoco.MjModel) -> np.ndarray:
    data = mujoco.MjData(model)
    data.qpos[:] = HOME
    mujoco.mj_kinematics(model, data)
    return data.site(EE_SITE).xpos.copy()


def _listed(names: list[str]) -> str:
    return ", ".join(name or "(unnamed)" for name in names) or "none"
