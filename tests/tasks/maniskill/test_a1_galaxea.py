"""The robot `a1_galaxea`: its model, compared with a table of measurements, and its controllers."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from paths import ROOT

from residual_rl.envs.maniskill import headless

pytestmark = pytest.mark.maniskill

Array = NDArray[np.float64]

JOINTS = (
    ((-0.0011147, 0, 0.0892), (0, 0, 3.1416)),
    ((0, -0.00004, 0.0615), (1.5708, 0, 0)),
    ((0.34928, 0.02, 0), (0, 0, 1.5708)),
    ((0.07, -0.00395, -0.00004), (-1.5708, 1.5708, 0)),
    ((0, 0, 0.2776), (-1.5708, 0, 3.1416)),
    ((0, -0.1575, -0.00023266), (1.5708, 0, 0)),
)
"""Origins of the arm's joints [m], and their roll, pitch and yaw [rad]; the joint axes are z."""
LIMITS = [
    [-2.8798, 2.8798],
    [0, 3.1415],
    [-3.3161, 0],
    [-2.8798, 2.8798],
    [-1.6581, 1.6581],
    [-2.8798, 2.8798],
    *[[-0.03, 0.025]] * 2,
]
MASSES = {
    "base_link": 1.0,
    "arm_seg1": 1.391,
    "arm_seg2": 1.3,
    "arm_seg3": 0.818,
    "arm_seg4": 0.816,
    "arm_seg5": 0.801,
    "arm_seg6": 0.465,
    "galaxea_eoat_set": 0.6938,
    "left_finger": 0.092,
    "right_finger": 0.092,
    "camera": 0.3107,
}


def transform(position: Any, roll: float, pitch: float, yaw: float) -> Array:
    """Homogeneous transform [4, 4], with rotations about the fixed axes x, y and z in this order."""
    (cr, sr), (cp, sp), (cy, sy) = ((np.cos(angle), np.sin(angle)) for angle in (roll, pitch, yaw))
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = about_z @ about_y @ about_x, position
    return result


def expected_frames(joints: Array) -> dict[str, Array]:
    """Frames [4, 4] of the links behind the arm by name, in the frame of the base."""
    seg6 = np.eye(4)
    for (position, turn), angle in zip(JOINTS, joints[:6], strict=True):
        seg6 = seg6 @ transform(position, *turn) @ transform((0, 0, 0), 0, 0, angle)
    hand = seg6 @ transform((0, 0, -0.063796), 0, 0, 0)
    inwards = np.array([0.0014394, -1, 0]) / np.hypot(0.0014394, 1)
    offsets = {
        "tcp": transform((0, 0, 0.06), 0, 0, 0),
        "tool_tip": transform((0, 0, 0.078), 0, 0, 0),
        "camera": transform((0.092689, 0, 0.052958), 0, -0.5236, 0),
        "left_finger": transform(np.array([0.00025714, 0.041492, 0.0697]) + joints[6] * inwards, 0, 0, 0),
        "right_finger": transform(np.array([0.00014129, -0.041492, 0.0697]) - joints[7] * inwards, 0, 0, 0),
    }
    return {name: hand @ offset for name, offset in offsets.items()}


def random_joints(n: int) -> Array:
    low, high = np.array(LIMITS).T
    return np.random.default_rng(0).uniform(low, high, (n, 8))


@pytest.fixture(scope="module")
def make_arm() -> Iterator[Any]:
    """A function that puts the arm, in an empty scene, into its `ready` pose in a control mode."""
    import mani_skill.envs  # noqa: F401

    import residual_rl.tasks.maniskill.a1_galaxea  # noqa: F401

    if not headless.vulkan_works():
        headless.replace_materials()
    env = gymnasium.make(
        "Empty-v1", robot_uids="a1_galaxea", obs_mode="state", sim_backend="physx_cpu", render_backend="none"
    ).unwrapped
    env.reset(seed=0)  # type: ignore[call-arg]

    def ready(mode: str) -> Any:
        agent = env.agent  # type: ignore[attr-defined]
        agent.set_control_mode(mode)
        agent.reset(torch.tensor(agent.keyframes["ready"].qpos, dtype=torch.float32)[None])
        agent.controller.reset()
        # ManiSkill sets the drive properties only when a mode is first used
        agent.controller.set_drive_property()
        for joint in agent.robot.active_joints:
            joint.set_drive_velocity_target(0.0)  # velocity modes leave their target behind
        return env

    yield ready
    env.close()


def test_a1_galaxea__link_frames_match_the_table(make_arm: Any) -> None:
    robot = make_arm("pd_joint_pos").agent.robot
    for joints in random_joints(8):
        robot.set_qpos(torch.tensor(joints, dtype=torch.float32)[None])
        for name, expected in expected_frames(joints).items():
            found = robot.links_map[name].pose.sp.to_transformation_matrix()
            np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=name)


def test_a1_galaxea__tool_frame_in_pytorch_kinematics_matches_the_table(make_arm: Any) -> None:
    """The Cartesian controllers of the GPU simulation use pytorch_kinematics."""
    import pytorch_kinematics

    model = Path(make_arm("pd_joint_pos").agent.urdf_path).read_bytes()
    chain = pytorch_kinematics.build_serial_chain_from_urdf(model, "tcp").to(dtype=torch.float64)
    joints = random_joints(8)
    found = chain.forward_kinematics(torch.tensor(joints[:, :6])).get_matrix().numpy()
    np.testing.assert_allclose(found, [expected_frames(row)["tcp"] for row in joints], atol=1e-6)


def test_a1_galaxea__joint_limits_and_masses_match_the_table(make_arm: Any) -> None:
    robot = make_arm("pd_joint_pos").agent.robot
    np.testing.assert_allclose(robot.get_qlimits()[0], LIMITS, atol=1e-6)
    found = {name: float(link._objs[0].mass) for name, link in robot.links_map.items() if name in MASSES}
    assert found == pytest.approx(MASSES)
    inertia = robot.links_map["arm_seg2"]._objs[0]  # the main moments are eigenvalues of the table's matrix
    rows = [
        [6.0643e-4, -4.1827e-4, 1.4951e-4],
        [-4.1827e-4, 7.5939e-3, 8.093e-6],
        [1.4951e-4, 8.093e-6, 7.5715e-3],
    ]
    np.testing.assert_allclose(np.sort(inertia.inertia), np.linalg.eigvalsh(rows), rtol=1e-3)
    np.testing.assert_allclose(inertia.cmass_local_pose.p, [0.23622, 0.016356, 0.0000915], atol=1e-7)


def test_a1_galaxea_keyframes__ready_points_the_gripper_down(make_arm: Any) -> None:
    frame = make_arm("pd_joint_pos").agent.tcp.pose.sp.to_transformation_matrix()
    np.testing.assert_allclose(frame[:3, 2], [0, 0, -1], atol=2e-3)  # out of the gripper
    np.testing.assert_allclose(frame[:3, 0], [1, 0, 0], atol=2e-3)  # towards the camera
    np.testing.assert_allclose(frame[:3, 3], [0.35, 0.0, 0.2], atol=2e-3)


def act(env: Any, action: Any, policy_steps: int = 4) -> None:
    """Execute `action` [A] for some policy steps of 5 physics steps each."""
    for _ in range(policy_steps):
        env.agent.set_action(torch.as_tensor(action, dtype=torch.float32)[None])
        for _ in range(5):
            env.agent.before_simulation_step()
            env.scene.step()


def test_a1_galaxea__has_the_control_modes_of_the_panda(make_arm: Any) -> None:
    from mani_skill.agents.robots import Panda

    agent = make_arm("pd_joint_pos").agent
    panda = set(Panda._controller_configs.fget(Panda))  # type: ignore[attr-defined]
    assert set(agent.supported_control_modes) == panda
    for mode in panda:
        size = make_arm(mode).agent.action_space.shape[-1]
        assert size == (4 if "ee" in mode and "pos" in mode.split("_") else 13 if "pos_vel" in mode else 7)


@pytest.mark.parametrize(
    "mode", ["pd_joint_delta_pos", "pd_joint_target_delta_pos", "pd_joint_delta_pos_vel", "pd_joint_vel"]
)
def test_a1_galaxea__joint_commands_move_the_commanded_joint(mode: str, make_arm: Any) -> None:
    env = make_arm(mode)
    before = env.agent.robot.get_qpos()[0].clone()
    action = np.zeros(env.agent.action_space.shape[-1])
    action[1] = -1.0
    act(env, action)
    moved = env.agent.robot.get_qpos()[0] - before
    assert -0.5 < moved[1] < -0.05
    assert moved[[0, 2, 3, 4, 5]].abs().max() < 0.2 * -moved[1]


@pytest.mark.parametrize("mode", ["pd_joint_pos", "pd_joint_pos_vel"])
def test_a1_galaxea__reaches_commanded_joint_positions(mode: str, make_arm: Any) -> None:
    env = make_arm(mode)
    target = env.agent.robot.get_qpos()[0, :6].numpy() + np.array([0.2, -0.1, 0.1, 0.0, 0.0, 0.3])
    act(env, [*target, *[0.0] * (6 if mode.endswith("vel") else 0), 0.0], 30)
    np.testing.assert_allclose(env.agent.robot.get_qpos()[0, :6], target, atol=5e-3)


@pytest.mark.parametrize(
    "mode", ["pd_ee_delta_pos", "pd_ee_delta_pose", "pd_ee_target_delta_pos", "pd_ee_target_delta_pose"]
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a1_galaxea__cartesian_commands_move_the_tool_along_the_axis(
    mode: str, axis: int, make_arm: Any
) -> None:
    env = make_arm(mode)
    before = env.agent.tcp.pose.raw_pose[0].clone()
    action = np.zeros(env.agent.action_space.shape[-1])
    action[axis] = -0.2  # 2 cm
    act(env, action, 3)
    moved = (env.agent.tcp.pose.raw_pose[0] - before)[:3]
    assert -0.065 < moved[axis] < -0.015
    assert moved[[other for other in range(3) if other != axis]].abs().max() < 0.3 * -moved[axis]


def test_a1_galaxea__reaches_a_commanded_tool_pose(make_arm: Any) -> None:
    env = make_arm("pd_ee_pose")
    act(env, [0.33, 0.05, 0.15, np.pi, 0.0, 0.0, 0.0], 40)  # half a turn about x: the tool points down
    frame = env.agent.tcp.pose.sp.to_transformation_matrix()
    np.testing.assert_allclose(frame[:3, 3], [0.33, 0.05, 0.15], atol=5e-3)
    np.testing.assert_allclose(frame[:3, :3], np.diag([1, -1, -1]), atol=0.03)


def test_opening_controller__opens_with_1_and_closes_with_minus_1(make_arm: Any) -> None:
    env = make_arm("pd_joint_delta_pos")
    left, right = env.agent.finger1_link, env.agent.finger2_link
    for action, position in ((1.0, -0.03), (-1.0, 0.025), (0.0, -0.0025)):
        act(env, [0.0] * 6 + [action], 20)
        np.testing.assert_allclose(env.agent.robot.get_qpos()[0, 6:], position, atol=1e-3)
        gap = float((left.pose.p - right.pose.p).norm()) - 2 * 0.0163  # from inner face to inner face
        assert gap == pytest.approx(2 * (0.041492 - 0.0163 - position), abs=2e-3)


def test_a1_galaxea_is_static__checks_the_speed_of_the_arm_joints(make_arm: Any) -> None:
    env = make_arm("pd_joint_delta_pos")
    for speeds, static in (
        ([0.0] * 6 + [1.0, 1.0], True),
        ([0.0, 0.19] + [0.0] * 6, True),
        ([0.0, -0.21] + [0.0] * 6, False),
    ):
        env.agent.robot.set_qvel(torch.tensor([speeds]))
        assert bool(env.agent.is_static(0.2)) == static


def test_a1_galaxea__urdf_is_in_the_wheel(tmp_path: Path) -> None:
    root = ROOT
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    shutil.copytree(
        root / "src" / "residual_rl",
        copy / "src" / "residual_rl",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(tmp_path),
        str(copy),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "residual_rl/tasks/maniskill/a1_galaxea.urdf" in zipfile.ZipFile(wheel).namelist()
