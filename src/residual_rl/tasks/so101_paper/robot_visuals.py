"""Visual shapes of the SO-101: servos, printed links, horns and jaws as boxes and cylinders.

They have no mass and no contacts.

Sizes and positions follow the arm: an STS3215 servo is a box of 45 x 25 x 35 mm with its shaft 11.5 mm from
the middle; printed brackets reach around it to the horns on both sides. Units: m, in the frame of the named
body.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from residual_rl.utils.mujoco_library import mujoco

Vec = tuple[float, float, float]

_MID = 0.0183
"""The arm's plane of symmetry: z in the frames of upper arm, lower arm and wrist."""
_SERVO = (0.0226, 0.0125, 0.0175)
"""Half size of a servo: along its length, its width, its shaft."""


def add_visuals(spec: mujoco.MjSpec, bodies: Mapping[str, mujoco.MjsBody]) -> None:
    """Add the visual geoms to the arm's bodies."""
    spec.add_material(name="printed", rgba=(1.0, 0.62, 0.13, 1), specular=0.2, shininess=0.3)
    spec.add_material(name="servo", rgba=(0.13, 0.13, 0.145, 1), specular=0.5, shininess=0.4)
    spec.add_material(name="metal", rgba=(0.72, 0.73, 0.75, 1), specular=0.8, shininess=0.7)
    _base(bodies["base"])
    _shoulder(bodies["shoulder"])
    _upper_arm(bodies["upper_arm"])
    _lower_arm(bodies["lower_arm"])
    _wrist(bodies["wrist"])
    _gripper(bodies["gripper"])
    _moving_jaw(bodies["moving_jaw"])


def _base(body: mujoco.MjsBody) -> None:
    _box(body, "printed", (0.014, 0, 0.004), (0.056, 0.038, 0.004))
    _box(body, "printed", (-0.018, 0, 0.026), (0.016, 0.030, 0.020))
    _box(body, "servo", (-0.0345, 0, 0.026), (0.001, 0.022, 0.013))  # the controller board at the back
    for side in (-1, 1):
        _box(body, "printed", (0.032, side * 0.018, 0.028), (0.036, 0.004, 0.022))
    _box(body, "servo", (0.0275, 0, 0.032), (_SERVO[0], _SERVO[1], _SERVO[2]))
    _cylinder(body, "metal", (0.0388, 0, 0.0525), (0, 0, 1), 0.011, 0.003)


def _shoulder(body: mujoco.MjsBody) -> None:  # z points down, x backwards
    _cylinder(body, "printed", (0, 0, 0.002), (0, 0, 1), 0.027, 0.005)
    _box(body, "printed", (-0.022, 0, -0.010), (0.028, 0.025, 0.008))
    for side in (-1, 1):
        _box(body, "printed", (-0.0304 + side * 0.0155, 0, -0.028), (0.0028, 0.0215, 0.018))
    _box(body, "servo", (-0.0304, 0, -0.0427), (_SERVO[1], _SERVO[2], _SERVO[0]))
    _horns(body, (-0.0304, 0, -0.0542), (0, 1, 0))


def _upper_arm(body: mujoco.MjsBody) -> None:  # the elbow is at -x, 28 mm off to -y
    _fork(body, (-0.066, 0.004), half_width=0.0125)
    _box(body, "printed", (-0.072, 0.000, _MID), (0.012, 0.0165, 0.0265))
    _box(body, "printed", (-0.104, 0.0085, _MID), (0.022, 0.0028, 0.021))
    _box(body, "servo", (-0.1126, -0.0165, _MID), (_SERVO[1], _SERVO[0], _SERVO[2]))
    _horns(body, (-0.1126, -0.028, _MID), (0, 0, 1))


def _lower_arm(body: mujoco.MjsBody) -> None:
    _fork(body, (-0.074, 0.003), half_width=0.0115)
    _box(body, "printed", (-0.086, 0.003, _MID), (0.014, 0.0150, 0.0265))
    _box(body, "printed", (-0.112, -0.0098, _MID), (0.020, 0.0024, 0.021))
    _box(body, "servo", (-0.1234, 0.0052, _MID), _SERVO)
    _horns(body, (-0.1349, 0.0052, _MID), (0, 0, 1))


def _wrist(body: mujoco.MjsBody) -> None:  # the roll axis is -y
    for side in (-1, 1):
        _cylinder(body, "printed", (0, 0, _MID + side * 0.0235), (0, 0, 1), 0.0131, 0.0030)
        _box(body, "printed", (0, -0.014, _MID + side * 0.0235), (0.0125, 0.014, 0.0026))
    _box(body, "printed", (0, -0.0245, _MID), (0.0125, 0.0028, 0.026))
    _box(body, "servo", (0, -0.0424, _MID + 0.0105), (_SERVO[1], _SERVO[2], _SERVO[0]))
    for side in (-1, 1):
        _box(body, "printed", (side * 0.0150, -0.038, _MID + 0.008), (0.0025, 0.0165, 0.020))
    _cylinder(body, "metal", (0, -0.0605, 0.0181), (0, 1, 0), 0.010, 0.0015)


def _gripper(body: mujoco.MjsBody) -> None:  # the fingers point to -z; the moving jaw is at +x
    _box(body, "printed", (0, 0, -0.0055), (0.022, 0.019, 0.0045))
    _box(body, "servo", (0.0087, 0, -0.0234), (_SERVO[0], _SERVO[2], _SERVO[1]))
    _horns(body, (0.0202, 0, -0.0234), (0, 1, 0))
    _box(body, "printed", (-0.0185, 0, -0.026), (0.0045, 0.019, 0.024))
    # the fixed jaw: a plate that narrows towards its tip, with a rib on its back
    _bar(body, (-0.0190, -0.036), (-0.0160, -0.064), 0.0020, 0.0150)
    _bar(body, (-0.0160, -0.062), (-0.0132, -0.086), 0.0018, 0.0105)
    _bar(body, (-0.0134, -0.084), (-0.0105, -0.103), 0.0015, 0.0060)
    _bar(body, (-0.0235, -0.038), (-0.0135, -0.090), 0.0035, 0.0035)


def _moving_jaw(body: mujoco.MjsBody) -> None:  # y is the gripper's z, z its -y; it closes towards -x
    for side in (-1, 1):
        _cylinder(body, "printed", (0, 0, 0.0188 + side * 0.0225), (0, 0, 1), 0.0115, 0.0026)
        _box(body, "printed", (0.000, -0.012, 0.0188 + side * 0.0225), (0.0110, 0.012, 0.0022))
    _box(body, "printed", (0.000, -0.0210, 0.0188), (0.0108, 0.0045, 0.0242))
    for a, b, half_width in (
        ((0.0020, -0.024), (-0.0030, -0.046), 0.0140),
        ((-0.0030, -0.044), (-0.0080, -0.064), 0.0095),
        ((-0.0080, -0.062), (-0.0112, -0.080), 0.0055),
    ):
        middle, half_length, angle = _segment(a, b)
        quat = (np.cos(angle / 2), 0, 0, np.sin(angle / 2))  # about the jaw's z
        _box(body, "printed", (middle[0], middle[1], 0.0188), (half_length, 0.0018, half_width), quat)


def _fork(body: mujoco.MjsBody, end: tuple[float, float], half_width: float) -> None:
    """Two plates on both sides of the previous link's servo, from the joint at the origin to `end` (x, y)."""
    middle, half_length, angle = _segment((0, 0), end)
    # The round ends are a little thicker than the plates, to avoid coincident faces.
    for side in (-1, 1):
        z = _MID + side * 0.0235
        _cylinder(body, "printed", (0, 0, z), (0, 0, 1), half_width + 0.0006, 0.0030)
        quat = (np.cos(angle / 2), 0, 0, np.sin(angle / 2))
        _box(body, "printed", (middle[0], middle[1], z), (half_length, half_width, 0.0026), quat)


def _horns(body: mujoco.MjsBody, center: Vec, axis: Vec) -> None:
    for side in (-1, 1):
        _cylinder(
            body, "metal", tuple(np.add(center, np.multiply(axis, side * 0.0192))), axis, 0.0095, 0.0017
        )


def _bar(
    body: mujoco.MjsBody,
    a: tuple[float, float],
    b: tuple[float, float],
    half_thickness: float,
    half_width: float,
) -> None:
    """A box from `a` to `b`, both (x, z), of the given thickness in that plane and width along y."""
    middle, half_length, angle = _segment(a, b)
    quat = (np.cos(angle / 2), 0, -np.sin(angle / 2), 0)
    _box(body, "printed", (middle[0], 0, middle[1]), (half_length, half_width, half_thickness), quat)


def _segment(a: tuple[float, float], b: tuple[float, float]) -> tuple[tuple[float, float], float, float]:
    """Middle, half length and angle [rad] of the segment from `a` to `b`."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    return ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2), float(np.hypot(dx, dy)) / 2, float(np.arctan2(dy, dx))


def _box(
    body: mujoco.MjsBody,
    material: str,
    pos: Vec,
    half: Vec,
    quat: tuple[float, float, float, float] = (1, 0, 0, 0),
) -> None:
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, pos=pos, quat=quat, size=half, material=material, **_VISUAL)


def _cylinder(
    body: mujoco.MjsBody, material: str, center: Vec, axis: Vec, radius: float, half_length: float
) -> None:
    ends = np.concatenate(
        [np.subtract(center, np.multiply(axis, half_length)), np.add(center, np.multiply(axis, half_length))]
    )
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER, fromto=ends, size=(radius, 0, 0), material=material, **_VISUAL
    )


_VISUAL = {"contype": 0, "conaffinity": 0, "mass": 0, "group": 2}
