"""Kinematics in torch, compared with recorded poses, MuJoCo, SciPy, finite differences, and an arm worked out
by hand."""

from __future__ import annotations

import json
import math

import mujoco
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from paths import DATA
from scipy.spatial.transform import Rotation

from residual_rl.errors import ModelError
from residual_rl.robots.kinematics import (
    KinematicChain,
    damped_least_squares,
    matrix_from_quaternion,
    transform,
)
from residual_rl.tasks.so101_paper.robot import EE_SITE, build_robot
from residual_rl.tasks.so101_paper.scene import build_scene

CASES = json.loads((DATA / "so101_fk.json").read_text())


@pytest.fixture(scope="module")
def arm() -> KinematicChain:
    return KinematicChain.from_mujoco(build_robot().compile(), EE_SITE)


@given(st.tuples(st.floats(-10, 10), st.floats(-1.5, 1.5), st.floats(-10, 10)))
def test_matrix_from_quaternion__equals_scipy(angles: tuple[float, float, float]) -> None:
    rotation = Rotation.from_euler("ZYX", angles)
    x, y, z, w = rotation.as_quat()
    quat = torch.tensor([w, x, y, z], dtype=torch.float64)
    np.testing.assert_allclose(matrix_from_quaternion(quat), rotation.as_matrix(), atol=1e-12)
    full = transform(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), quat)
    np.testing.assert_allclose(full[:3, :3], rotation.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(full[:, 3], [1, 2, 3, 1])
    np.testing.assert_allclose(full[3], [0, 0, 0, 1])


def test_kinematic_chain__agrees_with_recorded_poses_and_jacobians(arm: KinematicChain) -> None:
    """All poses in one batch. The jaw does not move the site, so its column of the Jacobian is zero."""
    assert arm.num_joints == 5
    frames, tool = arm.forward(torch.tensor([case["qpos"][:5] for case in CASES], dtype=torch.float64))
    linear, _ = arm.jacobian(frames, tool)
    np.testing.assert_allclose(tool[:, :3, 3], [case["gripperframe_pos_m"] for case in CASES], atol=1e-5)
    measured = np.array([case["jac_pos"] for case in CASES])
    np.testing.assert_allclose(linear, measured[:, :, :5], atol=1e-5)
    assert not measured[:, :, 5].any()
    found = Rotation.from_matrix(tool[:, :3, :3].numpy())
    expected = Rotation.from_quat([np.roll(case["gripperframe_quat_wxyz"], -1) for case in CASES])
    assert (found * expected.inv()).magnitude().max() < 1e-4


def test_from_mujoco__agrees_with_mujoco_in_the_scene() -> None:
    model = build_scene()
    chain = KinematicChain.from_mujoco(model, EE_SITE)
    data, generator = mujoco.MjData(model), np.random.default_rng(0)
    q = generator.uniform(*model.jnt_range[:6].T, (40, 6))
    frames, tool = chain.forward(torch.from_numpy(q[:, :5]))
    linear, angular = chain.jacobian(frames, tool)
    site = model.site(EE_SITE).id
    for i in range(len(q)):
        data.qpos[:6] = q[i]
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        expected = np.zeros((2, 3, model.nv))
        mujoco.mj_jacSite(model, data, expected[0], expected[1], site)
        np.testing.assert_allclose(tool[i, :3, 3], data.site_xpos[site], atol=1e-12)
        np.testing.assert_allclose(tool[i, :3, :3].flatten(), data.site_xmat[site], atol=1e-12)
        np.testing.assert_allclose(linear[i], expected[0, :, :5], atol=1e-12)
        np.testing.assert_allclose(angular[i], expected[1, :, :5], atol=1e-12)


def test_kinematic_chain__matches_a_planar_arm_worked_out_by_hand() -> None:
    """Two links of 1 m and 0.5 m that rotate about z."""
    along = transform(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, 0.0]))
    tool = transform(torch.tensor([0.5, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, 0.0]))
    chain = KinematicChain(torch.stack([torch.eye(4), along]), torch.tensor([[0.0, 0, 1], [0, 0, 1]]), tool)
    frames, reached = chain.forward(
        torch.tensor([[0.0, 0.0], [math.pi / 2, 0.0], [0.0, math.pi / 2], [math.pi / 2, -math.pi / 2]])
    )
    np.testing.assert_allclose(
        reached[:, :3, 3], [[1.5, 0, 0], [0, 1.5, 0], [1, 0.5, 0], [0.5, 1, 0]], atol=1e-6
    )
    np.testing.assert_allclose(frames[:, 1, :3, 3], [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]], atol=1e-6)
    linear, angular = chain.jacobian(frames, reached)
    np.testing.assert_allclose(linear[0], [[0, 0], [1.5, 0.5], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(linear[2], [[-0.5, -0.5], [1, 0], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(angular, [[[0, 0], [0, 0], [1, 1]]] * 4, atol=1e-6)


def test_kinematic_chain_jacobian__is_the_derivative_of_forward(arm: KinematicChain) -> None:
    generator = np.random.default_rng(1)
    q = torch.from_numpy(generator.uniform(-1.5, 1.5, 5))
    derivative = torch.autograd.functional.jacobian(lambda x: arm.forward(x[None])[1][0, :3, 3], q)
    linear, _ = arm.jacobian(*arm.forward(q[None]))
    np.testing.assert_allclose(linear[0], derivative, atol=1e-12)


def test_kinematic_chain__rows_do_not_depend_on_the_batch(arm: KinematicChain) -> None:
    q = torch.from_numpy(np.random.default_rng(2).uniform(-1.5, 1.5, (100, 5)))
    frames, tool = arm.forward(q)
    together = (frames, tool, *arm.jacobian(frames, tool))
    for rows in (slice(0, 1), slice(7, 14), slice(37, 100)):
        some = arm.forward(q[rows])
        for part, whole in zip((*some, *arm.jacobian(*some)), together, strict=True):
            assert torch.equal(part, whole[rows])


MJCF = """<mujoco><worldbody>
  <site name="fixed"/>
  <body name="a"><joint name="a" type="{kind}" pos="{pos}"/><geom size="0.1"/>
    <body name="b" pos="1 0 0">
      <joint name="b" axis="0 1 0"/><geom size="0.1"/><site name="tip" pos="0.5 0 0"/>
    </body>
    <body name="c"><joint name="c" type="slide"/><geom size="0.1"/></body>
  </body>
</worldbody></mujoco>"""


def model(kind: str = "hinge", pos: str = "0 0 0") -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(MJCF.format(kind=kind, pos=pos))


def test_from_mujoco__omits_other_branches() -> None:
    chain = KinematicChain.from_mujoco(model(), "tip")
    assert chain.num_joints == 2
    np.testing.assert_allclose(chain.axis, [[0, 0, 1], [0, 1, 0]])
    _, tool = chain.forward(torch.tensor([[0.0, math.pi / 2]], dtype=torch.float64))
    np.testing.assert_allclose(tool[0, :3, 3], [1, 0, -0.5], atol=1e-12)


@pytest.mark.parametrize(
    ("built", "site", "message"),
    [
        (model(), "nowhere", "no site 'nowhere'"),
        (model(), "fixed", "no joint moves the site 'fixed'"),
        (model(kind="ball"), "tip", "joint 'a' on the way to 'tip' is not a hinge or slide"),
        (
            model(pos="0.1 0 0"),
            "tip",
            "joint 'a' on the way to 'tip' is not a hinge or slide at its body's origin",
        ),
    ],
)
def test_from_mujoco__model_without_a_chain_is_an_error(
    built: mujoco.MjModel, site: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        KinematicChain.from_mujoco(built, site)


# --- damped least squares -----------------------------------------------------------------------------------

ELEMENTS = st.floats(-1, 1)


@given(
    hnp.arrays(np.float64, (3, 4, 5), elements=ELEMENTS),
    hnp.arrays(np.float64, (3, 4), elements=ELEMENTS),
    st.floats(0.01, 1.0),
)
def test_damped_least_squares__equals_numpy_lstsq(
    jacobian: np.ndarray, error: np.ndarray, damping: float
) -> None:
    step = damped_least_squares(torch.from_numpy(jacobian), torch.from_numpy(error), damping).numpy()
    for i in range(3):
        # The equivalent ordinary least squares problem: ‖J x - e‖² + damping² ‖x‖².
        stacked, target = (
            np.vstack([jacobian[i], damping * np.eye(5)]),
            np.concatenate([error[i], np.zeros(5)]),
        )
        np.testing.assert_allclose(step[i], np.linalg.lstsq(stacked, target, rcond=None)[0], atol=1e-8)


def test_damped_least_squares__matches_values_worked_out_by_hand() -> None:
    jacobian = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
    # along x: 2 · 1 / (4 + 1); along y the arm cannot move
    np.testing.assert_allclose(
        damped_least_squares(jacobian, torch.tensor([[1.0, 1.0]]), 1.0), [[0.4, 0.0]], atol=1e-7
    )
    np.testing.assert_allclose(
        damped_least_squares(jacobian, torch.tensor([[1.0, 1.0]]), 1e-3), [[0.5, 0.0]], atol=1e-5
    )


def test_damped_least_squares__reaches_the_target_with_little_damping(arm: KinematicChain) -> None:
    q = torch.tensor([[0.1, -0.4, 0.4, 1.2, 0.0]], dtype=torch.float64)
    target = torch.tensor([[0.22, 0.05, 0.06]], dtype=torch.float64)
    for _ in range(30):
        frames, tool = arm.forward(q)
        q = q + damped_least_squares(arm.jacobian(frames, tool)[0], target - tool[:, :3, 3], 0.01)
    np.testing.assert_allclose(arm.forward(q)[1][:, :3, 3], target, atol=1e-6)


def chain_urdf(*kinds: str, end: str = "") -> str:
    """A URDF with links l0, l1, … and joints of the given types; its meshes do not exist, and its limits are
    invalid."""
    mesh = '<visual><geometry><mesh filename="package://nowhere/part.dae"/></geometry></visual>'
    links = "".join(
        f'<link name="l{i}">{mesh}{mesh.replace("visual", "collision")}</link>' for i in range(len(kinds) + 1)
    )
    joints = "".join(
        f'<joint name="j{i}" type="{kind}"><parent link="l{i - 1}"/><child link="l{i}"/>'
        f'<origin xyz="0.1 {0.1 * i} 0.3" rpy="0.5 -0.2 {0.3 * i}"/><axis xyz="0 1.2 1.6"/>'
        '<limit lower="1" upper="0" effort="1" velocity="1"/></joint>'
        for i, kind in enumerate(kinds, 1)
    )
    return f'<robot name="r">{links}{joints}{end}</robot>'


def euler_frame(xyz: tuple[float, float, float], rpy: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", rpy).as_matrix()
    matrix[:3, 3] = xyz
    return matrix


def test_from_urdf__equals_the_product_of_transforms() -> None:
    """Fixed joints are merged into the offsets, and a branch with an unsupported joint is omitted."""
    branch = (
        '<link name="side"/><joint name="odd" type="floating"><parent link="l1"/><child link="side"/></joint>'
    )
    kinds = ("fixed", "revolute", "fixed", "prismatic", "continuous", "fixed")
    chain = KinematicChain.from_urdf(chain_urdf(*kinds, end=branch), "l6")
    assert chain.joint_names == ("j2", "j4", "j5")
    values = {2: 0.7, 4: -0.4, 5: 2.0}
    expected = np.eye(4)
    axis = np.array([0.0, 0.6, 0.8])
    for i, kind in enumerate(kinds, 1):
        expected = expected @ euler_frame((0.1, 0.1 * i, 0.3), (0.5, -0.2, 0.3 * i))
        if kind == "prismatic":
            expected = expected @ euler_frame(tuple(axis * values[i]), (0.0, 0.0, 0.0))
        elif kind != "fixed":
            moved = np.eye(4)
            moved[:3, :3] = Rotation.from_rotvec(axis * values[i]).as_matrix()
            expected = expected @ moved
    positions = torch.tensor([list(values.values())], dtype=torch.float64)
    frames, tool = chain.forward(positions)
    np.testing.assert_allclose(tool[0], expected, atol=1e-12)

    # Compare the Jacobian with finite differences.
    linear, angular = chain.jacobian(frames, tool)
    for joint in range(3):
        step = torch.zeros_like(positions)
        step[0, joint] = 1e-6
        after, before = chain.forward(positions + step)[1][0], chain.forward(positions - step)[1][0]
        np.testing.assert_allclose(linear[0, :, joint], (after[:3, 3] - before[:3, 3]) / 2e-6, atol=1e-8)
        turn = Rotation.from_matrix(after[:3, :3] @ before[:3, :3].T).as_rotvec() / 2e-6
        np.testing.assert_allclose(angular[0, :, joint], turn, atol=1e-8)


@pytest.mark.parametrize(
    ("text", "link", "message"),
    [
        ("<robot", "l1", "the URDF is not XML"),
        (chain_urdf("revolute"), "hand", "the URDF has no link 'hand'; it has l0, l1"),
        (chain_urdf("fixed"), "l1", "no joint moves the site 'l1'"),
        (chain_urdf("floating"), "l1", "MuJoCo cannot parse the URDF: .*free joint"),
    ],
)
def test_from_urdf__invalid_model_is_an_error(text: str, link: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        KinematicChain.from_urdf(text, link)
