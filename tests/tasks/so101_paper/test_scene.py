"""The SO-101 and its scene: measured values, geometry worked out by hand, and physical behaviour."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import degrees
from pathlib import Path

import mujoco
import numpy as np
import pytest
from mujoco.batch import Batch
from paths import DATA

from residual_rl.errors import ConfigError, ModelError
from residual_rl.tasks.so101_paper.robot import (
    EE_SITE,
    HOME,
    JOINTS,
    LINKS,
    MOVING_TIP_SITE,
    SERVO_OLD,
    build_robot,
)
from residual_rl.tasks.so101_paper.scene import SHEET_HALF_SIZE, SceneCfg, build_scene, build_spec

CASES = json.loads((DATA / "so101_fk.json").read_text())


@pytest.fixture(scope="module")
def scene() -> mujoco.MjModel:
    return build_scene()


def at_home(model: mujoco.MjModel) -> mujoco.MjData:
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("home").id)
    mujoco.mj_forward(model, data)
    return data


def body_site(model: mujoco.MjModel, data: mujoco.MjData, name: str) -> np.ndarray:
    return data.site_xpos[model.site(name).id].copy()


# --- the arm


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_build_robot__matches_measured_kinematics_and_statics(case: dict[str, list[float]]) -> None:
    model = build_robot().compile()
    data = mujoco.MjData(model)
    data.qpos[:] = case["qpos"]
    mujoco.mj_forward(model, data)
    site = model.site(EE_SITE).id
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, data.site_xmat[site])
    expected_quat = np.array(case["gripperframe_quat_wxyz"])
    jacobian = np.zeros((3, model.nv))
    mujoco.mj_jacSite(model, data, jacobian, None, site)
    np.testing.assert_allclose(data.site_xpos[site], case["gripperframe_pos_m"], atol=1e-5)
    np.testing.assert_allclose(quat * np.sign(quat @ expected_quat), expected_quat, atol=1e-4)
    np.testing.assert_allclose(body_site(model, data, MOVING_TIP_SITE), case["moving_tip_pos_m"], atol=1e-5)
    np.testing.assert_allclose(data.qfrc_bias, case["gravity_torque_nm"], atol=1e-4)
    np.testing.assert_allclose(jacobian, case["jac_pos"], atol=1e-5)


def test_build_robot__has_the_documented_names_ranges_mass_and_servos() -> None:
    model = build_robot().compile()
    assert [model.body(i).name for i in range(1, model.nbody)] == [link.name for link in LINKS]
    assert [model.joint(i).name for i in range(model.njnt)] == list(JOINTS)
    assert [model.actuator(i).name for i in range(model.nu)] == list(JOINTS)
    np.testing.assert_allclose(model.joint("wrist_roll").range, (-2.74385, 2.84121))
    np.testing.assert_allclose(model.actuator_ctrlrange, model.jnt_range)
    assert model.body_mass.sum() == pytest.approx(0.632006)  # sum of the table: visual shapes have no mass
    np.testing.assert_allclose(model.actuator_gainprm[:, 0], 998.22)
    np.testing.assert_allclose(model.actuator_biasprm[:, 1:3], [[-998.22, -2.731]] * 6)
    np.testing.assert_allclose(model.actuator_forcerange, [[-2.94, 2.94]] * 6)
    for field, value in (("dof_damping", 0.60), ("dof_frictionloss", 0.052), ("dof_armature", 0.028)):
        np.testing.assert_allclose(getattr(model, field), value)
    assert not model.geom_contype.any()
    assert not model.geom_conaffinity.any()


def test_servo_old__sags_under_the_weight_of_the_arm() -> None:
    model = build_robot(SERVO_OLD).compile()
    data = mujoco.MjData(model)
    for _ in range(3000):
        mujoco.mj_step(model, data)
    # the arm stretched forwards: 0.5386 N m at the shoulder (so101_fk.json), within 0.052 N m of dry
    # friction, over 17.8 N m/rad
    sag = data.joint("shoulder_lift").qpos[0]
    assert (0.5386 - 0.052) / 17.8 * 0.95 < sag < (0.5386 + 0.052) / 17.8 * 1.05


def test_home__points_the_closed_fingers_down(scene: mujoco.MjModel) -> None:
    data = at_home(scene)
    site = scene.site(EE_SITE).id
    np.testing.assert_allclose(data.site_xpos[site], (0.20, 0.0, 0.08), atol=1e-4)
    along = data.site_xmat[site].reshape(3, 3)[:, 0]
    assert np.degrees(np.arcsin(-along[2])) == pytest.approx(80, abs=0.1)
    margin = np.minimum(np.array(HOME) - scene.jnt_range[:6, 0], scene.jnt_range[:6, 1] - np.array(HOME))
    assert margin[:5].min() > 0.2
    np.testing.assert_array_equal(data.ctrl, data.qpos[:6])


# --- the scene


def test_build_scene__has_the_documented_state_sensors_and_options(scene: mujoco.MjModel) -> None:
    assert (scene.nq, scene.nv, scene.nu) == (13, 12, 6)
    assert scene.joint("sheet_free").qposadr[0] == 6
    names = [scene.sensor(i).name for i in range(scene.nsensor)]
    assert names == [
        *(f"jointpos_{j}" for j in JOINTS),
        *(f"jointvel_{j}" for j in JOINTS),
        "ee_position",
        "sheet_position",
        "sheet_quaternion",
    ]
    assert scene.nsensordata == 6 + 6 + 3 + 3 + 4
    data = at_home(scene)
    data.qvel[:] = np.arange(12) / 100
    mujoco.mj_forward(scene, data)
    np.testing.assert_allclose(data.sensordata[:6], data.qpos[:6])
    np.testing.assert_allclose(data.sensordata[6:12], data.qvel[:6])
    np.testing.assert_allclose(data.sensor("sheet_position").data, (0.275, 0, 0.000075))
    option = scene.opt
    assert option.timestep == 0.001
    assert option.solver == mujoco.mjtSolver.mjSOL_NEWTON
    assert option.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    assert option.cone == mujoco.mjtCone.mjCONE_ELLIPTIC
    assert (option.impratio, option.ls_iterations) == (10, 20)
    assert [scene.camera(i).name for i in range(scene.ncam)] == ["top", "scene", "wrist"]
    assert scene.camera("top").fovy[0] == scene.camera("wrist").fovy[0] == 140


def test_build_scene__has_four_contact_pairs_and_no_other_contacts(scene: mujoco.MjModel) -> None:
    assert not scene.geom_contype.any()
    assert not scene.geom_conaffinity.any()
    pairs = {scene.pair(i).name: scene.pair(i) for i in range(scene.npair)}
    geoms = {
        name: {scene.geom(int(pair.geom1[0])).name, scene.geom(int(pair.geom2[0])).name}
        for name, pair in pairs.items()
    }
    assert geoms == {
        "sheet_table": {"sheet", "table"},
        "sheet_tape": {"sheet", "tape_patch"},
        "tip_sheet": {"fingertip", "sheet"},
        "tip_floor": {"fingertip", "tip_floor"},
    }
    for name, dim, friction in (
        ("sheet_table", 3, (0.3, 0.3)),
        ("sheet_tape", 3, (0.9, 0.9)),
        ("tip_sheet", 4, (1.2, 1.2, 0.05)),
    ):
        assert pairs[name].dim[0] == dim
        np.testing.assert_allclose(pairs[name].friction[: dim - 1], friction)
        np.testing.assert_allclose(pairs[name].solref, (0.005, 1))
    np.testing.assert_allclose(pairs["sheet_table"].solimp[:3], (0.9, 0.95, 0.001))
    np.testing.assert_allclose(pairs["tip_sheet"].solimp[:3], (0.99, 0.999, 0.001))


@pytest.mark.parametrize("tolerance", [0.02, 0.005])
def test_build_scene__tape_surrounds_the_sheet_with_the_tolerance(tolerance: float) -> None:
    model = build_scene(SceneCfg(tolerance=tolerance))
    np.testing.assert_allclose(model.geom("sheet").size, (0.074, 0.105, 0.000075))
    assert model.body("sheet").mass[0] == pytest.approx(0.005)
    far, near, left, right = (model.geom(f"tape_{side}") for side in ("far", "near", "left", "right"))
    # inner edges: A5 (0.148 x 0.210) and the tolerance on each side; strips 2 cm wide
    assert far.pos[0] - far.size[0] == pytest.approx(0.22 + 0.074 + tolerance)
    assert near.pos[0] + near.size[0] == pytest.approx(0.22 - 0.074 - tolerance)
    assert left.pos[1] - left.size[1] == pytest.approx(0.105 + tolerance)
    assert right.pos[1] + right.size[1] == pytest.approx(-0.105 - tolerance)
    for strip, axis in ((far, 0), (near, 0), (left, 1), (right, 1)):
        assert 2 * strip.size[axis] == pytest.approx(0.02)
    patch = model.geom("tape_patch")
    np.testing.assert_allclose(patch.pos[:2], (0.22, 0))
    np.testing.assert_allclose(patch.size[:2], (0.074 + tolerance + 0.02, 0.105 + tolerance + 0.02))
    assert patch.rgba[3] == 0
    acts_at = patch.pos[2] + patch.size[2] + model.pair("sheet_tape").margin[0]
    assert acts_at == pytest.approx(0, abs=1e-12)  # the table's height


@pytest.mark.parametrize(
    "change",
    [
        {"tolerance": -0.01},
        {"tape_width": 0.0},
        {"sheet_mass": float("nan")},
        {"servo": "new"},
        {"wrist_fovy": 180.0},
    ],
)
def test_scene_cfg__invalid_value_names_the_field(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        SceneCfg(**change)  # type: ignore[arg-type]


# --- physics


def test_build_scene__home_pose_is_stable_and_the_sheet_rests(scene: mujoco.MjModel) -> None:
    data = at_home(scene)
    start = body_site(scene, data, EE_SITE)
    for _ in range(13200):  # 400 policy steps
        mujoco.mj_step(scene, data)
    assert np.linalg.norm(body_site(scene, data, EE_SITE) - start) < 0.001
    np.testing.assert_allclose(data.qpos[6:9], (0.275, 0, SHEET_HALF_SIZE[2]), atol=2e-5)
    assert not any(warning.number for warning in data.warning)


def breakaway(model: mujoco.MjModel, x: float, load: float = 5.0) -> float:
    """The sideways force that moves the sheet at `x`, relative to its weight plus a `load` [N] on it."""
    data = at_home(model)
    data.qpos[6] = x
    weight = load + 0.005 * 9.81
    for i in range(2000):
        force = weight * max(0, i - 200) / 1000
        data.xfrc_applied[model.body("sheet").id, :3] = 0, force, -load
        mujoco.mj_step(model, data)
        if abs(data.qvel[7]) > 0.2:
            return force / weight
    return np.inf


def test_build_scene__sheet_breaks_away_at_the_friction_of_the_pairs(scene: mujoco.MjModel) -> None:
    assert breakaway(scene, x=0.8) == pytest.approx(0.30, abs=0.04)  # the table alone
    assert 0.60 < breakaway(scene, x=0.22) < 0.90  # table and patch share the load


def press(model: mujoco.MjModel, x: float, steps: int) -> mujoco.MjData:
    """Lower the finger onto the table below its home pose with fixed joint targets."""
    data = at_home(model)
    data.qpos[6:8] = x, 0.0
    # gripperframe at (0.200, 0, 0.003), fingers at 80 degrees
    down = np.array([0.0, -0.2757, 0.8712, 0.8008, 0.0, -0.17])
    for i in range(steps):
        data.ctrl[:] = np.array(HOME) + min(1.0, i / 1000) * (down - np.array(HOME))
        mujoco.mj_step(model, data)
    return data


def test_build_scene__pressed_sheet_carries_the_load(scene: mujoco.MjModel) -> None:
    data = press(scene, x=0.22, steps=1500)
    forces = {}
    for i, contact in enumerate(data.contact):
        force = np.zeros(6)
        mujoco.mj_contactForce(scene, data, i, force)
        key = "tip" if scene.geom("fingertip").id in contact.geom else "below"
        forces[key] = forces.get(key, 0.0) + abs(force[0])
    assert forces["tip"] > 1.0
    assert forces["below"] == pytest.approx(forces["tip"] + 0.005 * 9.81, rel=0.05)
    assert -0.002 < data.qpos[8] < 0.001
    assert np.abs(data.qvel[:9]).max() < 0.01


def test_build_scene__fingertip_does_not_touch_the_table(scene: mujoco.MjModel) -> None:
    data = press(scene, x=0.7, steps=1500)  # the sheet is elsewhere
    assert body_site(scene, data, EE_SITE)[2] < 0.008
    tip, floor = scene.geom("fingertip").id, scene.geom("tip_floor").id
    assert all(set(contact.geom) == {tip, floor} for contact in data.contact if tip in contact.geom)


def test_build_scene__finger_cannot_get_under_the_sheet(scene: mujoco.MjModel) -> None:
    data = press(scene, x=0.7, steps=1500)
    for _ in range(1500):  # as far down as the servos can push
        data.ctrl[1] += 0.0002
        mujoco.mj_step(scene, data)
    # its centre stays above the sheet's, so that it can only press the sheet down or push it away
    assert body_site(scene, data, EE_SITE)[2] > 0.001


def test_build_scene__sheet_slides_onto_the_patch_from_outside() -> None:
    """The sheet is dragged slowly over the edge of the patch under a load of 18 N.

    If the patch were flush with the table, its side wall would throw the sheet off.
    """
    spec = build_spec(SceneCfg())
    spec.delete(spec.keys[0])
    sled = spec.worldbody.add_body(name="sled", pos=(0.418, 0, 0.0081))
    slide = mujoco.mjtJoint.mjJNT_SLIDE
    sled.add_joint(name="sled_x", type=slide, axis=(1, 0, 0), damping=500, armature=1)
    sled.add_joint(name="sled_z", type=slide, axis=(0, 0, 1), damping=1)
    sled.add_geom(
        name="sled", type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(0.008, 0, 0), mass=0.1, contype=0, conaffinity=0
    )
    tip = spec.pairs[-1]
    assert tip.name == "tip_sheet"
    tip.geomname1 = "sled"
    model = spec.compile()
    data = mujoco.MjData(model)
    data.qpos[6:8] = 0.418, 0.0  # the near edge is 1 cm outside the patch
    for i in range(2000):
        data.joint("sled_z").qfrc_applied[:] = -18
        data.joint("sled_x").qfrc_applied[:] = -0.9 * 18 if i > 50 else 0  # slightly more than the friction
        mujoco.mj_step(model, data)
        assert np.abs(data.qvel[6:8]).max() < 1.0
    assert data.qpos[6] < 0.334 + 0.074 - 0.005  # it crossed the edge
    assert abs(data.qpos[8]) < 0.002


def test_build_scene__ten_thousand_random_steps_are_stable(scene: mujoco.MjModel) -> None:
    batch, generator = Batch(scene, 4, 1), np.random.default_rng(0)
    batch.qpos[:], batch.ctrl[:] = scene.key("home").qpos, scene.key("home").ctrl
    low, high = scene.actuator_ctrlrange.T
    target = np.array(batch.ctrl)
    for _ in range(10000 // 33):
        target += generator.uniform(-0.02, 0.02, target.shape)
        target[:, 1] += 0.004  # drifts down onto the sheet
        target[:] = np.clip(np.clip(target, low, high), batch.qpos[:, :6] - 0.2, batch.qpos[:, :6] + 0.2)
        batch.ctrl = target
        batch.step(nstep=33)
        assert np.abs(batch.qvel).max() < 20
        assert np.abs(batch.qpos[:, 8]).max() < 0.02
    assert not batch.warning.any()


# --- the user's robot model


def write(tmp_path: Path, change: Callable[[str], str] = lambda xml: xml) -> str:
    """Write the built-in arm to a file, after applying `change` to the XML."""
    robot = build_robot()
    robot.compile()
    before = robot.to_xml()
    after = change(before)
    path = tmp_path / "robot.xml"
    path.write_text(after)
    return str(path)


def test_robot_xml__built_in_arm_as_a_file_gives_the_same_scene(
    tmp_path: Path, scene: mujoco.MjModel
) -> None:
    own = build_scene(SceneCfg(robot_xml=write(tmp_path)))
    assert (own.nq, own.nv, own.nu, own.npair, own.nsensordata) == (13, 12, 6, 4, 22)
    one, other = at_home(own), at_home(scene)
    for _ in range(300):
        mujoco.mj_step(own, one)
        mujoco.mj_step(scene, other)
    np.testing.assert_allclose(one.qpos, other.qpos, atol=1e-6)


def test_robot_xml__settings_in_the_file_do_not_change_the_scene(
    tmp_path: Path, scene: mujoco.MjModel
) -> None:
    """The file has other defaults and options, a floor, a light, a camera, a keyframe, and degrees."""

    def change(xml: str) -> str:
        head = (
            '<option timestep="0.005" gravity="0 0 -1" solver="CG"/><default><joint stiffness="3"'
            ' damping="7"/><geom margin="0.01" friction="2 1 1" contype="1" conaffinity="1"/><pair'
            ' margin="0.1" gap="0.05"/></default>'
        )
        elements = (
            '<geom name="floor" type="plane" size="1 1 1"/><light name="key" pos="0 0 1"/><camera name="top"'
            ' pos="0 0 1"/>'
        )
        xml = xml.replace("<joint ", '<joint stiffness="0" ').replace('angle="radian"', 'angle="degree"')
        to_degrees = lambda m: f'{m[1]}{degrees(float(m[2]))} {degrees(float(m[3]))}"'  # noqa: E731
        xml = re.sub(r'(<joint [^>]*range=")([-0-9.e]+) ([-0-9.e]+)"', to_degrees, xml)
        xml = xml.replace("<worldbody>", head + "<worldbody>" + elements)
        return xml.replace("</mujoco>", '<keyframe><key name="home" qpos="0 0 0 0 0 0"/></keyframe></mujoco>')

    own = build_scene(SceneCfg(robot_xml=write(tmp_path, change)))
    assert own.opt.timestep == 0.001
    np.testing.assert_allclose(own.opt.gravity, (0, 0, -9.81))
    assert own.opt.solver == mujoco.mjtSolver.mjSOL_NEWTON
    assert not own.geom_contype.any()
    assert not own.geom_conaffinity.any()
    assert (own.nlight, own.ncam, own.nkey) == (scene.nlight, scene.ncam, 1)
    np.testing.assert_allclose(own.pair_margin, scene.pair_margin)
    np.testing.assert_allclose(own.pair_gap, 0)
    np.testing.assert_allclose(own.dof_damping[6:], 0)
    assert own.jnt_stiffness[6] == 0
    one, other = at_home(own), at_home(scene)
    for _ in range(300):
        mujoco.mj_step(own, one)
        mujoco.mj_step(scene, other)
    np.testing.assert_allclose(one.qpos, other.qpos, atol=1e-6)


def without_actuators(xml: str) -> str:
    return xml[: xml.index("<actuator>")] + xml[xml.index("</actuator>") + len("</actuator>") :]


@pytest.mark.parametrize(("servo", "kp", "limit"), [("identified", 998.22, 2.94), ("old", 17.8, 3.35)])
def test_robot_xml__model_without_actuators_gets_the_configured_servos(
    tmp_path: Path, scene: mujoco.MjModel, servo: str, kp: float, limit: float
) -> None:
    own = build_scene(SceneCfg(robot_xml=write(tmp_path, without_actuators), servo=servo))
    np.testing.assert_allclose(own.actuator_gainprm[:, 0], [kp] * 6)
    np.testing.assert_allclose(own.actuator_forcerange, [[-limit, limit]] * 6)
    np.testing.assert_allclose(own.actuator_ctrlrange, scene.actuator_ctrlrange)


def test_robot_xml__model_with_actuators_rejects_another_servo(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(ModelError, match=r"robot\.xml has its own actuators, which --servo cannot change"):
        build_scene(SceneCfg(robot_xml=path, servo="old"))


def motors(xml: str) -> str:
    start, end = xml.index("<actuator>"), xml.index("</actuator>")
    return (
        xml[:start] + "<actuator>" + "".join(f'<motor name="{j}" joint="{j}"/>' for j in JOINTS) + xml[end:]
    )


def replaced(old: str, new: str) -> Callable[[str], str]:
    """A change of an XML file that replaces one text by another."""
    return lambda xml: xml.replace(old, new)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced('"elbow_flex"', '"elbow"'), r"joint\(s\) elbow_flex missing; it has: .*elbow"),
        (replaced('name="gripperframe"', 'name="tip"'), "site 'gripperframe' missing; it has: tip"),
        (replaced('<body name="gripper"', '<body name="hand"'), "body 'gripper' missing; it has: .*hand"),
        (
            replaced('<body name="base">', '<body name="base"><freejoint name="floating"/>'),
            "in this order; it has: floating",
        ),
        (
            replaced('<joint name="wrist_roll"', '<joint type="slide" name="wrist_roll"'),
            "wrist_roll must be a hinge",
        ),
        (motors, "must be position servos"),
        (replaced('joint="wrist_roll"', 'joint="wrist_flex"'), "one actuator per joint"),
        (
            replaced('<body name="base"', '<body name="base" pos="0.2 0 0"'),
            "check joint zeros and base pose",
        ),
        (lambda xml: xml.replace("<geom ", '<geom name="sheet" ', 1), "sheet"),
        (lambda xml: xml[: len(xml) // 2], "MuJoCo cannot read it"),
        (lambda _: "not a model", "MuJoCo cannot read it"),
    ],
)
def test_robot_xml__unsuitable_model_is_named_in_the_error(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    path = write(tmp_path, change)
    with pytest.raises(ModelError, match=message) as error:
        build_scene(SceneCfg(robot_xml=path))
    assert path in str(error.value)
    assert "\n" not in str(error.value)


def test_robot_xml__missing_file_is_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "absent.xml"
    with pytest.raises(ModelError, match=r"absent\.xml: no such file"):
        build_spec(SceneCfg(robot_xml=str(path)))
