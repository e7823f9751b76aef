"""An arm as a vec_env: rate, velocities, poses, images, and what was sent."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from fake_arm import AWAY, IN_PLACE, FakeArm

from residual_rl.deployment.arm_physics import ArmPhysics, make_arm_env
from residual_rl.errors import ArmError, ConfigError
from residual_rl.factory import make_vec_env
from residual_rl.tasks.so101_paper.robot import HOME

PERIOD = 0.033


def arm_env(arm, pose_source="arm", **settings):
    simulated = make_vec_env("so101-paper", 1, **settings)
    return make_arm_env(simulated, arm, arm.sheet_pose if pose_source == "arm" else pose_source)


def test_make_arm_env__an_action_moves_the_target_by_its_scale_from_the_measured_position():
    start = np.array(HOME) + 0.05
    arm = FakeArm(start)
    env = arm_env(arm)
    obs, _ = env.reset()
    assert arm.commands == []
    np.testing.assert_allclose(obs["joint_target"][0], start, atol=1e-6)
    obs, *_ = env.step(torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, -0.5]]))
    np.testing.assert_allclose(arm.commands[0] - start, [0.02, 0, 0, 0, 0, -0.01], atol=1e-7)
    np.testing.assert_allclose(obs["joint_position"][0], arm.commands[0], atol=1e-6)


def test_arm_physics_step__the_velocity_is_the_difference_of_two_readings():
    env = arm_env(FakeArm())
    obs, _ = env.reset()
    assert not obs["joint_velocity"].any()
    obs, *_ = env.step(torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]))
    assert obs["joint_velocity"][0, 0] == pytest.approx(0.02 / PERIOD, rel=1e-5)


def test_arm_physics_read__the_fingertip_is_where_the_simulator_has_it():
    env, simulated = arm_env(FakeArm()), make_vec_env("so101-paper", 1)
    expected = simulated.reset()[0]["ee_position"]
    torch.testing.assert_close(env.reset()[0]["ee_position"], expected, atol=1e-6, rtol=0)


def test_arm_physics_step__readings_follow_each_other_at_the_policys_rate():
    arm = FakeArm()
    env = arm_env(arm)
    env.reset()
    for _ in range(4):
        arm.time += 0.02  # the policy computes
        env.step(torch.zeros(1, 6))
    reads = [time for name, time in arm.log if name == "read"]
    np.testing.assert_allclose(np.diff(reads), PERIOD, atol=1e-9)


def test_arm_physics_step__time_that_a_slow_policy_lost_is_not_caught_up():
    arm = FakeArm()
    env = arm_env(arm)
    env.reset()
    arm.time += 0.1
    for _ in range(3):
        env.step(torch.zeros(1, 6))
    reads = [time for name, time in arm.log if name == "read"]
    np.testing.assert_allclose(np.diff(reads), [0.1 + PERIOD, PERIOD, PERIOD], atol=1e-9)


def test_arm_physics_step__the_executed_action_is_what_the_driver_sent():
    arm = FakeArm()
    send = arm.command
    arm.command = lambda target: send(np.array(HOME) + 0.5 * (target - np.array(HOME)))
    env = arm_env(arm)
    env.reset()
    obs, _, _, _, info = env.step(torch.tensor([[1.0, 0.0, -0.4, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(info["executed_action"], torch.tensor([[0.5, 0.0, -0.2, 0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(obs["joint_target"][0], arm.commands[0], atol=1e-6)


def test_make_arm_env__success_is_judged_by_the_pose_source():
    arm = FakeArm()
    env = arm_env(arm)
    env.reset()
    assert not env.step(torch.zeros(1, 6))[2]
    arm.sheet = IN_PLACE
    for _ in range(9):
        terminated = env.step(torch.zeros(1, 6))[2]
        assert not terminated
    assert env.step(torch.zeros(1, 6))[2].item()  # held for ten steps


def test_arm_physics__a_pose_that_is_not_seen_is_the_last_one_for_a_limited_time():
    arm = FakeArm()
    first = arm.sheet_pose()
    seen = [first]
    env = arm_env(arm, lambda: seen.pop() if seen else None)
    obs, _ = env.reset()
    assert env.physics.read()["sheet_seen"].tolist() == [1.0]
    for _ in range(14):  # 0.46 s
        obs, *_ = env.step(torch.zeros(1, 6))
        assert env.physics.read()["sheet_seen"].tolist() == [0.0]
    np.testing.assert_allclose(obs["sheet_pose"][0, :3], AWAY, atol=1e-7)
    env.step(torch.zeros(1, 6))
    with pytest.raises(ArmError, match="has not seen the sheet for 0\\.5"):
        env.step(torch.zeros(1, 6))


def test_arm_physics__a_policy_may_observe_whether_the_pose_was_seen_in_its_step():
    arm = FakeArm()
    seen = [arm.sheet_pose()]
    env = arm_env(arm, lambda: seen.pop() if seen else None, observe_sheet_seen=True)
    obs, _ = env.reset()
    assert (obs["sheet_seen"].item(), obs["state"][0, -1].item()) == (1.0, 1.0)
    obs, *_ = env.step(torch.zeros(1, 6))
    assert (obs["sheet_seen"].item(), obs["state"][0, -1].item()) == (0.0, 0.0)
    np.testing.assert_allclose(obs["sheet_pose"][0, :3], AWAY, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": np.array([np.nan, 0, 0])}, "NaN"),
        ({"position": np.zeros(2)}, "shapes"),
        ({"quaternion": np.array([1.0, 1.0, 0, 0])}, "length 1.414"),
        ({"position": ["x", "y", "z"]}, "no numbers"),
        ({"position": [10**400, 0, 0]}, "no numbers"),
        ({"time": 1e6}, "in the future"),  # it would never be too old
    ],
)
def test_arm_physics__a_wrong_pose_is_refused_before_anything_moves(change, message):
    arm = FakeArm()
    env = arm_env(arm, lambda: dataclasses.replace(arm.sheet_pose(), **change))
    with pytest.raises(ArmError, match=message):
        env.reset()
    assert arm.commands == []


def test_arm_physics__without_a_pose_source_the_error_says_so():
    with pytest.raises(ArmError, match="give a pose source"):
        arm_env(FakeArm(), None).reset()


def test_arm_physics_render__images_of_the_arm_in_the_size_of_the_task():
    env = arm_env(FakeArm(), obs_mode="rgb+state", obs_cameras=("top",), image_size=(8, 8))
    obs, _ = env.reset()
    assert obs["top"].shape == (1, 8, 8, 3)
    assert (obs["top"] == len(env.physics.driver.log) % 256).all()


def test_arm_physics_render__a_missing_camera_is_named():
    env = arm_env(FakeArm(), obs_mode="rgb", obs_cameras=("top", "wrist"))
    with pytest.raises(ArmError, match="no camera 'wrist'; it has top"):
        env.reset()


def test_arm_physics__an_arm_with_other_joints_is_refused():
    arm = FakeArm()
    arm.hardware = dataclasses.replace(arm.hardware, joint_names=("a", "b", "c", "d", "e", "f"))
    with pytest.raises(ConfigError, match="this one has a, b"):
        arm_env(arm)


def test_arm_physics_reset__where_no_episode_follows_the_arm_stays_as_it_is():
    arm = FakeArm()
    env = arm_env(arm)
    env.reset()
    env.physics.begin_episode = lambda episode: False
    calls = len(arm.log)
    env.reset()
    assert len(arm.log) == calls


def test_arm_physics_reset__an_env_without_an_episode_is_not_reset():
    arm = FakeArm()
    simulated = make_vec_env("so101-paper", 1)
    physics = ArmPhysics(arm, simulated.kinematics, 30.0)
    physics.reset(torch.zeros(0, dtype=torch.int64), {})
    assert arm.log == []
