"""The base policy `ik` in ManiSkill envs: kinematics compared with the simulator, success, and errors."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from residual_rl.base_policies import ik_policy as ik
from residual_rl.base_policies.executor import make_base_policy
from residual_rl.base_policies.ik import IKCfg
from residual_rl.base_policies.ik_policy import IKPolicy, turn_to
from residual_rl.cli.main import main
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.envs.maniskill.sim_env import ManiSkillEnv
from residual_rl.envs.maniskill.spec import EnvDescription, ManiSkillEnvCfg
from residual_rl.envs.maniskill.vec_env import ManiSkillVecEnv
from residual_rl.errors import ConfigError
from residual_rl.factory import make_residual_env
from residual_rl.robots.arm import Arm
from residual_rl.robots.cartesian_goals import GOALS, funnel, tool_yaw, yaw_of
from residual_rl.robots.kinematics import KinematicChain
from residual_rl.tasks.maniskill.config import ManiSkillCfg
from residual_rl.tasks.maniskill.factory import make
from residual_rl.tasks.maniskill.goals import peg_insertion_side as peg
from residual_rl.tasks.maniskill.goals.pick_and_place import GRASP, LIFT, MOVE, REACH, RELEASE
from residual_rl.tasks.maniskill.goals.stack_cube import StackCubeGoals
from residual_rl.types import Obs

pytestmark = pytest.mark.maniskill

Make = Callable[..., ManiSkillVecEnv]


@pytest.fixture(scope="module")
def make_env() -> Iterator[Make]:
    made: dict[Any, ManiSkillVecEnv] = {}

    def make_one(env_id: str, control_mode: str | None = None, **settings: Any) -> ManiSkillVecEnv:
        key = (env_id, control_mode, tuple(settings.items()))
        if key not in made:
            made[key] = make(ManiSkillCfg(env_id=env_id, control_mode=control_mode, **settings), 3, 1, "cpu")
        return made[key]

    yield make_one
    for env in made.values():
        env.close()


ARM = Arm(
    robot="stick",
    control="ee_delta_pose",
    action_index=(1, 2, 3, 4, 5, 6),
    action_scale=(0.1, 0.1, 0.1, -0.2, -0.2, -0.2),
    joint_names=("a",),
    all_joint_names=("a",),
    moving_joint_names=("a",),
    tool_link="tip",
    urdf=None,
    gripper_index=(0,),
    gripper_opens=-1.0,
)


def stub(arm: Arm | None = ARM, task_name: str = "StackCube-v1", action_dim: int = 7) -> Any:
    return SimpleNamespace(
        arm=arm,
        task_name=task_name,
        device=torch.device("cpu"),
        num_envs=1,
        action_unit=torch.ones(action_dim),
        control_mode="odd",
    )


def pose(x: float, y: float, z: float, *quaternion: float) -> Tensor:
    return torch.tensor([[x, y, z, *(quaternion or (1.0, 0.0, 0.0, 0.0))]], dtype=torch.float64)


DOWN = (0.0, 1.0, 0.0, 0.0)
"""A tool that points down, with its y axis along -y of the world frame."""


def stacking(tool: tuple[float, float, float], cube: tuple[float, float, float], **more: Tensor) -> Obs:
    """A tool that points down, a cube, and a second cube at (0.1, 0) to stack it on."""
    poses = {"tcp_pose": pose(*tool, *DOWN), "cubeA_pose": pose(*cube), "cubeB_pose": pose(0.1, 0.0, 0.02)}
    return {**poses, "base_pose": pose(0.0, 0.0, 0.0), **more}


# --- geometry worked out by hand ----------------------------------------------------------------------------


def test_turn_to__matches_rotations_worked_out_by_hand() -> None:
    turned = math.radians(20)
    # -y is a quarter turn from +x.
    assert turn_to(torch.tensor([DOWN]), torch.tensor([0.0])).tolist() == [[0.0, 0.0, 0.0]]
    about_z = turn_to(torch.tensor([DOWN], dtype=torch.float64), torch.tensor([turned], dtype=torch.float64))
    assert about_z[0].tolist() == pytest.approx([0.0, 0.0, turned])
    # A tool that is tilted by 20 degrees about the x axis of the world.
    tilted = torch.tensor([[-math.sin(turned / 2), math.cos(turned / 2), 0.0, 0.0]], dtype=torch.float64)
    assert turn_to(tilted, None)[0].tolist() == pytest.approx([-turned, 0.0, 0.0])


def test_yaw_of__and_tool_yaw_match_angles_worked_out_by_hand() -> None:
    yaw = math.radians(40)
    assert float(yaw_of(pose(0, 0, 0, math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)))) == pytest.approx(yaw)
    assert float(tool_yaw(pose(0, 0, 0, *DOWN))) == pytest.approx(-math.pi / 2)


def test_funnel__raises_a_target_that_is_far_to_the_side() -> None:
    target, tool = (
        torch.tensor([[0.0, 0.0, 0.02]] * 3),
        torch.tensor([[0.3, 0.0, 0.2], [0.03, 0.0, 0.2], [0.005, 0.0, 0.2]]),
    )
    # The second is 3 x (0.03 - 0.01) above the target.
    expected = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.0, 0.08], [0.0, 0.0, 0.02]])
    assert torch.allclose(funnel(target, tool, hover=0.08), expected)


def test_jacobian__equals_finite_differences_in_the_simulator() -> None:
    """Compared with differences of the tool's pose after changes of single joints in the simulator."""
    env = ManiSkillEnv(ManiSkillEnvCfg("PickCube-v1"))
    arm = env.description.arm
    assert arm is not None
    assert arm.joint_names == arm.moving_joint_names == tuple(f"panda_joint{i}" for i in range(1, 8))
    robot, tool = env.env.agent.robot, env.env.agent.tcp
    rest = robot.get_qpos().clone()
    jacobian = ik._Jacobian(arm, torch.device("cpu"))(rest.double())[0]
    assert jacobian.shape == (6, 7)
    step = 0.02
    for joint in range(7):
        ends = []
        for sign in (1.0, -1.0):
            moved = rest.clone()
            moved[0, joint] += sign * step
            robot.set_qpos(moved)
            ends.append(tool.pose.to_transformation_matrix()[0].double())
        (after, before), both = ends, 2 * step
        skew = after[:3, :3] @ before[:3, :3].T
        vector = torch.stack([skew[2, 1] - skew[1, 2], skew[0, 2] - skew[2, 0], skew[1, 0] - skew[0, 1]]) / 2
        expected = torch.cat([(after[:3, 3] - before[:3, 3]) / both, vector / both])
        assert torch.allclose(jacobian[:, joint], expected, atol=1e-3)
    env.close()


@pytest.mark.parametrize(
    ("urdf", "link"),
    [
        ("panda/panda_v2.urdf", "panda_hand_tcp"),
        ("fetch/fetch.urdf", "gripper_link"),  # its torso is a slide joint
        ("so100/so100.urdf", "Fixed_Jaw_tip"),
    ],
)
def test_kinematic_chain_from_urdf__equals_pytorch_kinematics(urdf: str, link: str) -> None:
    import mani_skill
    import pytorch_kinematics

    text = (Path(mani_skill.__file__).parent / "assets" / "robots" / urdf).read_bytes()
    theirs = pytorch_kinematics.build_serial_chain_from_urdf(text, link).to(dtype=torch.float64)
    ours = KinematicChain.from_urdf(text, link)
    assert list(ours.joint_names) == theirs.get_joint_parameter_names()
    positions = (
        torch.rand(20, ours.num_joints, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
        - 2
    )
    frames, tool = ours.forward(positions)
    assert torch.allclose(tool, theirs.forward_kinematics(positions).get_matrix(), atol=1e-6)
    assert torch.allclose(torch.cat(ours.jacobian(frames, tool), 1), theirs.jacobian(positions), atol=1e-6)


# --- actions and phases worked out by hand ------------------------------------------------------------------


def test_ik_policy__action_is_the_distance_to_the_goal_in_units_of_the_arm() -> None:
    """The tool is 0.2 m above a cube, with an offset of 4 mm and 0.3 rad. The action is three tenths of the
    distance in units of 0.1 m, and three tenths of the angle in units of -0.2 rad."""
    policy = ik.make(IKCfg(gain=0.3, max_step=1.0, max_turn=1.0), stub())
    half = 0.15
    cube = pose(0.004, 0.0, 0.02, math.cos(half), 0.0, 0.0, math.sin(half))
    action = policy.predict_action_chunk(
        {**stacking((0.0, 0.0, 0.22), (0, 0, 0)), "cubeA_pose": cube}, torch.tensor([0])
    )
    assert action.shape == (1, 1, 7)
    # The gripper is open, which is -1 for this robot.
    assert action[0, 0].tolist() == pytest.approx([-1.0, 0.012, 0.0, -0.6, 0.0, 0.0, -0.45])
    faster = ik.make(IKCfg(gain=0.6, max_step=0.06, max_turn=1.0), stub())
    action = faster.predict_action_chunk(stacking((0.0, 0.0, 0.22), (0.0, 0.0, 0.02)), torch.tensor([0]))
    assert action[0, 0, 1:4].tolist() == pytest.approx([0.0, 0.0, -0.6])  # 0.12 m are cut to 0.06 m


def test_ik_policy__actions_are_along_the_axes_of_the_base() -> None:
    """The base is rotated by 90 degrees: the y axis of the world is the x axis of the base."""
    policy = ik.make(IKCfg(gain=1.0, max_step=0.05), stub())
    turned = pose(0.0, 0.0, 0.0, math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5))
    action = policy.predict_action_chunk(
        stacking((0.0, -0.3, 0.1), (0.0, 0.0, 0.02), base_pose=turned), torch.tensor([0])
    )
    # The tool is already at the height of 0.08 m above the cube.
    assert action[0, 0, 1:4].tolist() == pytest.approx([0.5, 0.0, 0.0], abs=1e-6)


def test_stack_cube_goals_advance__follows_the_phases() -> None:
    goals, now = StackCubeGoals("panda"), torch.tensor([0])

    def after(phase: int, steps: int, obs: Obs) -> int:
        return int(goals.advance(obs, torch.tensor([phase]), now + steps))

    assert after(REACH, 9, stacking((0.0, 0.0, 0.05), (0.0, 0.0, 0.02))) == REACH
    assert after(REACH, 9, stacking((0.0, 0.0, 0.025), (0.0, 0.0, 0.02))) == GRASP
    assert after(GRASP, 3, stacking((0.0, 0.0, 0.02), (0.0, 0.0, 0.02))) == GRASP
    assert after(GRASP, 4, stacking((0.0, 0.0, 0.02), (0.0, 0.0, 0.02))) == LIFT
    assert after(LIFT, 1, stacking((0.0, 0.0, 0.06), (0.0, 0.0, 0.06))) == LIFT
    assert (
        after(LIFT, 1, stacking((0.0, 0.0, 0.08), (0.0, 0.0, 0.08))) == MOVE
    )  # it is carried at a height of 0.085 m
    assert after(LIFT, 1, stacking((0.0, 0.0, 0.08), (0.0, 0.0, 0.02))) == REACH  # it slipped
    assert after(MOVE, 1, stacking((0.1, 0.0, 0.07), (0.1, 0.0, 0.07))) == MOVE
    assert after(MOVE, 1, stacking((0.1, 0.0, 0.063), (0.1, 0.0, 0.063))) == RELEASE
    assert after(RELEASE, 20, stacking((0.1, 0.0, 0.1), (0.1, 0.0, 0.06))) == RELEASE
    assert after(RELEASE, 20, stacking((0.1, 0.0, 0.1), (0.2, 0.0, 0.02))) == REACH  # it fell


def inserting(
    tool: tuple[float, float, float],
    peg_at: tuple[float, float, float],
    yaw: float = 0.0,
    tool_yaw: float = math.pi / 2,
) -> Obs:
    """A peg of 0.2 m along x, rotated by `yaw`, in front of a hole along x at a height of 0.1 m.

    The centre of the box is at x = 0.5 m. The tool points down, with its y axis at `tool_yaw`.
    """
    half = 0.5 * (tool_yaw + math.pi / 2)  # DOWN has it along -y
    held = pose(*tool, 0.0, math.cos(half), math.sin(half), 0.0)
    lying = pose(*peg_at, math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))
    return {
        "tcp_pose": held,
        "peg_pose": lying,
        "peg_half_size": torch.tensor([[0.1, 0.02, 0.02]], dtype=torch.float64),
        "box_hole_pose": pose(0.5, 0.0, 0.1),
    }


def test_peg_insertion_side_goals_advance__follows_the_phases() -> None:
    goals, now = peg.PegInsertionSideGoals("panda"), torch.tensor([0])

    def after(phase: int, steps: int, obs: Obs) -> int:
        return int(goals.advance(obs, torch.tensor([phase]), now + steps))

    # It is grasped 0.06 m behind its centre: half of its half length, and 1 cm.
    assert after(peg.REACH, 9, inserting((-0.06, 0.0, 0.02), (0.0, 0.0, 0.02))) == peg.GRASP
    assert after(peg.REACH, 9, inserting((-0.04, 0.0, 0.02), (0.0, 0.0, 0.02))) == peg.REACH
    # The fingers are along the peg, not across.
    assert after(peg.REACH, 9, inserting((-0.06, 0.0, 0.02), (0.0, 0.0, 0.02), tool_yaw=0.0)) == peg.REACH
    assert (
        after(peg.REACH, 9, inserting((-0.06, 0.0, 0.02), (0.0, 0.0, 0.02), tool_yaw=-math.pi / 2))
        == peg.GRASP
    )
    assert after(peg.GRASP, 4, inserting((-0.06, 0.0, 0.02), (0.0, 0.0, 0.02))) == peg.GRASP
    assert after(peg.GRASP, 5, inserting((-0.06, 0.0, 0.02), (0.0, 0.0, 0.02))) == peg.ALIGN
    # The face of the box is 0.1 m in front of its centre; a head at 0.38 m is 0.02 m in front of it.
    assert after(peg.ALIGN, 9, inserting((0.22, 0.0, 0.1), (0.28, 0.0, 0.1))) == peg.INSERT
    assert after(peg.ALIGN, 9, inserting((0.22, 0.0, 0.104), (0.28, 0.0, 0.104))) == peg.ALIGN
    assert after(peg.INSERT, 9, inserting((0.22, 0.0, 0.104), (0.28, 0.0, 0.104))) == peg.INSERT
    assert after(peg.INSERT, 9, inserting((0.22, 0.0, 0.11), (0.28, 0.0, 0.11))) == peg.ALIGN
    assert after(peg.INSERT, 9, inserting((0.32, 0.0, 0.11), (0.38, 0.0, 0.11))) == peg.INSERT  # it is inside
    assert after(peg.INSERT, 9, inserting((0.22, 0.0, 0.15), (0.28, 0.0, 0.1))) == peg.REACH  # it slipped


def test_peg_insertion_side_goals_goal__matches_poses_worked_out_by_hand() -> None:
    goals, now = peg.PegInsertionSideGoals("panda"), torch.tensor([0])

    def goal(phase: int, obs: Obs) -> Any:
        return goals.goal(obs, torch.tensor([phase]), now)

    carried = goal(peg.ALIGN, inserting((0.04, 0.05, 0.2), (0.1, 0.05, 0.2)))
    # The head is 0.02 m in front of the box, and the tool 0.16 m behind the head.
    assert carried.position[0].tolist() == pytest.approx([0.22, 0.0, 0.1])
    pushed = goal(peg.INSERT, inserting((0.22, 0.0, 0.101), (0.28, 0.0, 0.101)))
    assert pushed.position[0].tolist() == pytest.approx([0.22 + 0.015, 0.0, 0.1])
    assert not pushed.is_open.item()
    # A peg that is rotated by 0.1 rad is rotated back about the tool, which brings its head into place.
    turned = inserting(
        (0.0, 0.0, 0.1),
        (0.06 * math.cos(0.1), 0.06 * math.sin(0.1), 0.1),
        yaw=0.1,
        tool_yaw=math.pi / 2 + 0.1,
    )
    wanted = goal(peg.ALIGN, turned)
    assert wanted.position[0].tolist() == pytest.approx([0.22, 0.0, 0.1])
    assert float(wanted.yaw) == pytest.approx(math.pi / 2)
    # It is approached from above, and only once the fingers are across it.
    assert goal(peg.REACH, inserting((-0.06, 0.0, 0.1), (0.0, 0.0, 0.02))).position[
        0
    ].tolist() == pytest.approx([-0.06, 0.0, 0.02])
    along = goal(peg.REACH, inserting((-0.06, 0.0, 0.1), (0.0, 0.0, 0.02), tool_yaw=math.pi / 2 - 1.0))
    assert along.position[0].tolist() == pytest.approx([-0.06, 0.0, 0.1])
    assert float(along.yaw) == pytest.approx(
        math.pi / 2 - 0.4
    )  # at most 0.6 rad at once, with the gripper open
    assert along.is_open.item()


# --- in the simulator ---------------------------------------------------------------------------------------


def successes(env: ManiSkillVecEnv, policy: Any, seed: int) -> Tensor:
    """Whether the first episode of each env succeeds [B]."""
    obs, _ = env.reset(seed=seed)
    policy.reset(torch.ones(3, dtype=torch.bool))
    ended, won = torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    for _ in range(env.max_episode_steps):
        obs, _, terminated, truncated, info = env.step(policy.act(obs))
        done = terminated | truncated
        won |= done & ~ended & info["final_info"]["success_once"]
        ended |= done
        policy.reset(done)
    return won


@pytest.mark.parametrize(
    ("env_id", "control_mode"),
    [
        ("PickCube-v1", "pd_joint_delta_pos"),
        ("PickCube-v1", "pd_ee_delta_pose"),
        ("PushCube-v1", "pd_joint_delta_pos"),
        ("PushCube-v1", "pd_ee_delta_pos"),
        ("StackCube-v1", "pd_ee_delta_pose"),
        ("PegInsertionSide-v1", "pd_joint_delta_pos"),
    ],
)
def test_ik_policy__solves_most_episodes(env_id: str, control_mode: str, make_env: Make) -> None:
    env = make_env(env_id, control_mode)
    assert successes(env, make_base_policy("ik", None, env), 41).sum() >= 2


def test_ik_policy__turns_the_fingers_to_the_sides_of_the_cube(make_env: Make) -> None:
    env = make_env("PickCube-v1", "pd_ee_delta_pose")
    policy = make_base_policy("ik", None, env)
    obs, _ = env.reset(seed=[41, 42, 43])

    def off() -> Tensor:
        return turn_to(obs["tcp_pose"][:, 3:], yaw_of(obs["obj_pose"]))[:, 2].abs()

    before = off()
    for _ in range(8):
        obs, *_ = env.step(policy.act(obs))
    assert before.max() > 0.6
    # By 0.1 rad per step, of which the controller executes about a third.
    assert ((off() < before - 0.2) | (off() < 0.02)).all()


def test_ik_policy__ensemble_of_two_gains_has_their_spread_as_uncertainty() -> None:
    """Policies with two gains disagree on the way to the cube; their spread is the uncertainty."""
    cfg = TrainCfg.default("maniskill", "hybrid")
    cfg = replace_fields(
        cfg, {"env_id": "PickCube-v1", "num_threads": 1, "adaptive": "uncertainty", "residual_scale": 0.5}
    )
    base = dataclasses.replace(
        cfg.base, policies=("ik", "ik"), settings=("0.gain=0.2", "1.gain=0.5"), mode="ensemble"
    )
    env = make_residual_env(dataclasses.replace(cfg, base=base), 2)
    try:
        env.reset(seed=3)
        uncertainty = env.base_policy.uncertainty
        assert (uncertainty > 0.01).all()
        members = [
            member.act({name: env.vec_env.observations()[name] for name in member.policy.inputs})
            for member in _fresh(env.vec_env)
        ]
        spread = torch.stack(members).double().std(0, correction=0).mean(1)
        assert torch.allclose(uncertainty.double(), spread, atol=1e-6)
    finally:
        env.close()


def _fresh(env: Any) -> list[Any]:
    return [make_base_policy("ik", IKCfg(gain=gain), env) for gain in (0.2, 0.5)]


@pytest.mark.slow
def test_train__accepts_an_ensemble_of_ik_policies(tmp_path: Path) -> None:
    flags = [
        "--env-id",
        "PushCube-v1",
        "--num-envs",
        "2",
        "--num-steps",
        "8",
        "--minibatch-size",
        "8",
        "--hidden-sizes",
        "8",
        "8",
    ]
    flags += [
        "--num-threads",
        "1",
        "--eval-episodes",
        "1",
        "--eval-freq",
        "0",
        "--total-timesteps",
        "32",
        "--max-episode-steps",
        "10",
    ]
    flags += [
        "--expert-type",
        "hybrid",
        "--base.policies",
        "ik",
        "ik",
        "--base.settings",
        "0.gain=0.5",
        "--base.mode",
        "ensemble",
    ]
    assert (
        main(
            ["train", "maniskill", *flags, "--adaptive", "uncertainty", "--output-dir", str(tmp_path / "run")]
        )
        == 0
    )


# --- errors -------------------------------------------------------------------------------------------------


def test_goals__task_without_goals_is_an_error_with_the_known_tasks() -> None:
    known = ", ".join(sorted(spec.id for spec in GOALS.all()))
    assert {"PickCube-v1", "PushCube-v1", "StackCube-v1", "PickBox-v1"} <= {spec.id for spec in GOALS.all()}
    message = (
        f"unknown task with Cartesian goals 'PokeCube-v1'.*known: {known}; for another task .*--base.goals"
        " MODULE:CLASS"
    )
    with pytest.raises(ConfigError, match=message):
        ik.make(IKCfg(), stub(task_name="PokeCube-v1"))


def test_goals__accepts_a_class_of_the_user() -> None:
    policy = ik.make(
        IKCfg(goals="residual_rl.tasks.maniskill.goals.stack_cube:StackCubeGoals"), stub(task_name="Other-v1")
    )
    assert isinstance(policy, IKPolicy)
    assert isinstance(policy.goals, StackCubeGoals)
    wrong = {
        "here": "goals must be MODULE:CLASS, not 'here'",
        "nowhere:Goals": "cannot be loaded",
        "math:floor": (
            "goals must name a class of `CartesianGoals`; 'math:floor' is a builtin_function_or_method"
        ),
    }
    for goals, message in wrong.items():
        with pytest.raises(ConfigError, match=message):
            ik.make(IKCfg(goals=goals), stub())


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (None, "an env with one arm that describes the effect of actions"),
        (
            dataclasses.replace(ARM, control=None),
            (
                "control mode 'odd' of robot 'stick' .*choose pd_ee_delta_pos, pd_ee_delta_pose or"
                " pd_joint_delta_pos"
            ),
        ),
        (
            dataclasses.replace(ARM, control="joint_delta"),
            "robot 'stick' has no URDF .*: choose a Cartesian control mode",
        ),
        (
            dataclasses.replace(ARM, control="joint_delta", urdf="/nowhere.urdf"),
            "cannot be read from /nowhere.urdf .*No such file",
        ),
        (
            dataclasses.replace(ARM, gripper_index=()),
            "robot 'stick' has no gripper, which StackCubeGoals requires",
        ),
        (
            dataclasses.replace(ARM, gripper_opens=None),
            "the action that opens the gripper of robot 'stick' is unknown: set the attribute",
        ),
    ],
    ids=["no arm", "control mode", "no URDF", "URDF missing", "no gripper", "gripper unknown"],
)
def test_ik_policy__unsupported_arm_is_an_error(arm: Arm | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ik.make(IKCfg(), stub(arm))


def test_ik_policy__unsupported_control_mode_is_an_error(make_env: Make) -> None:
    with pytest.raises(
        ConfigError, match=r"base policy 'ik': .*control mode 'pd_joint_pos' of robot 'panda'"
    ):
        make_base_policy("ik", None, make_env("PushCube-v1", "pd_joint_pos"))


def test_ik_policy__missing_observation_is_an_error(make_env: Make) -> None:
    goals = IKCfg(goals="residual_rl.tasks.maniskill.goals.stack_cube:StackCubeGoals")
    with pytest.raises(
        ConfigError, match=r"base policy 'ik' needs the observation 'cubeA_pose' \(7,\); the env has "
    ):
        make_base_policy("ik", goals, make_env("PushCube-v1", "pd_joint_delta_pos"))


@pytest.mark.parametrize(
    "settings", [{"gain": 0.0}, {"max_step": -1.0}, {"max_turn": 0.0}, {"damping": -0.1}, {"gain": math.nan}]
)
def test_ik_cfg__invalid_value_is_an_error(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        IKCfg(**settings)


def test_env_description__round_trips_through_json() -> None:
    description = EnvDescription("stick", "odd", 5, 20.0, {}, (), (0.1,), 2, True, "Task-v1", ARM)
    assert EnvDescription.from_json(json.loads(json.dumps(description.to_json()))) == description
