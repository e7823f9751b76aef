"""`SimulatedArm`: equal to the task's env, on two clocks, with a cable that can be lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.errors import ArmError, ConfigError, UnknownNameError
from residual_rl.factory import make_vec_env
from residual_rl.tasks.so101_paper.config import SO101PaperCfg
from residual_rl.tasks.so101_paper.robot import HOME
from residual_rl.tasks.so101_paper.simulated_arm import SimulatedArm

SOLVED = 16
"""Seed of an episode that the base policy `jacobian` solves in few steps."""


class WallClock:
    """Wall time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time

    def sleep(self, time: float) -> None:
        self.time += time


def connected(**settings: object) -> SimulatedArm:
    arm = SimulatedArm(**settings)  # type: ignore[arg-type]
    arm.connect()
    return arm


def raised(joint: int, by: float) -> np.ndarray:
    """The home pose with one joint moved [rad]."""
    target = np.array(HOME)
    target[joint] += by
    return target


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"position_noise": 0.002}], ids=["exact", "noisy"])
def test_simulated_arm__an_episode_equals_that_of_the_tasks_env_bit_for_bit(
    settings: dict[str, float],
) -> None:
    env = make_vec_env("so101-paper", 1, num_threads=1, **settings)
    arm = connected(cfg=SO101PaperCfg(**settings), seed=SOLVED)
    base, own = (make_base_policy("jacobian", None, e) for e in (env, arm.env))
    obs, _ = env.reset(seed=SOLVED)
    for _ in range(400):
        mine = arm.observe()
        assert {name: torch.equal(value, mine[name]) for name, value in obs.items()} == dict.fromkeys(
            obs, True
        )
        arm.command(arm.joint_target(own.act(mine)[0]))
        arm.wait_until(arm.now() + arm.period)
        _, reward, terminated, _, info = env.step(base.act(obs))
        obs = info["final_obs"]
        assert arm.success() == bool(terminated)
        assert arm.reward() == pytest.approx(float(reward), abs=1e-6)
        if terminated:
            break
    assert arm.success()
    assert arm.now() == pytest.approx(0.033 * int(info["final_info"]["episode_length"]))


def test_simulated_arm__the_split_of_the_waiting_time_does_not_change_the_motion() -> None:
    whole, parts = connected(), connected()
    for arm, waits in ((whole, [0.033]), (parts, [0.004, 0.0125, 0.033])):
        arm.command(raised(0, 0.05))
        for time in waits:
            arm.wait_until(time)
    assert whole.now() == parts.now() == pytest.approx(0.033)
    assert np.array_equal(whole.read().joint_position, parts.read().joint_position)


def test_reset__begins_the_episode_of_a_seed_again() -> None:
    arm = connected(seed=3)
    pose, before = arm.sheet_pose(), arm.episode
    arm.command(raised(1, 0.3))
    arm.wait_until(arm.now() + 1.0)
    assert abs(arm.read().joint_position - HOME).max() > 0.1
    arm.reset(3)
    assert np.array_equal(arm.sheet_pose().position, pose.position)
    assert np.array_equal(arm.read().joint_position, HOME)
    assert arm.episode == before + 1
    arm.reset(4)
    assert not np.array_equal(arm.sheet_pose().position, pose.position)
    with pytest.raises(ConfigError, match="must not be negative"):
        arm.reset(-1)


def test_sheet_pose__is_where_the_episodes_draws_put_the_sheet() -> None:
    arm = SimulatedArm(SO101PaperCfg(randomization="off"))
    pose = arm()  # as a pose source
    assert pose.position[:2] == pytest.approx([0.275, 0.0])  # the middle of 0.20 to 0.35 and of -0.15 to 0.15
    assert pose.quaternion == pytest.approx([1.0, 0.0, 0.0, 0.0])
    assert pose.time == arm.now() == 0.0


def test_command__is_cut_to_the_joint_limits_and_refused_if_it_is_not_finite() -> None:
    arm = connected()
    assert arm.command(np.array([0.0, 0.0, 0.0, 9.0, 0.0, -9.0]))[[3, 5]] == pytest.approx(
        [1.65806, -0.174533]
    )
    for wrong in (raised(0, math.nan), raised(0, math.inf), np.zeros(5)):
        with pytest.raises(ArmError, match="6 finite numbers"):
            arm.command(wrong)


def test_read__needs_a_connection() -> None:
    arm = SimulatedArm()
    with pytest.raises(ArmError, match=r"call connect\(\) first"):
        arm.read()
    arm.connect()
    arm.read()
    arm.disconnect()
    assert not arm.is_connected
    with pytest.raises(ArmError, match="not connected"):
        arm.command(np.array(HOME))


def test_lose_cable__makes_every_method_fail_while_the_arm_goes_on_to_its_last_target() -> None:
    arm = connected()
    arm.command(raised(0, 0.2))
    arm.lose_cable(after=0.1)
    arm.wait_until(0.05)
    arm.read()
    arm.wait_until(1.0)
    for method in (arm.read, arm.hold, arm.torque_off, arm.connect, lambda: arm.command(np.array(HOME))):
        with pytest.raises(ArmError, match="cable is unplugged"):
            method()
    arm.plug_in()
    arm.connect()
    assert arm.read().joint_position[0] == pytest.approx(0.2, abs=0.01)


def test_hold__stops_a_motion() -> None:
    arm = connected()
    arm.command(raised(0, 1.0))
    arm.wait_until(0.1)
    arm.hold()
    at = arm.read().joint_position[0]
    arm.wait_until(1.0)
    assert arm.read().joint_position[0] == pytest.approx(at, abs=0.05)
    assert at < 0.9


def test_torque_off__lets_the_arm_fall_and_a_command_lifts_it_again() -> None:
    arm = connected()
    arm.torque_off()
    arm.wait_until(3.0)
    fallen = abs(arm.read().joint_position - HOME).max()
    arm.command(np.array(HOME))
    arm.wait_until(6.0)
    assert fallen > 0.05
    assert arm.read().joint_position == pytest.approx(np.array(HOME), abs=0.01)


def test_real_time__the_arm_moves_while_wall_time_passes() -> None:
    wall, fast = WallClock(), connected()
    arm = connected(real_time=True, clock=wall, sleep=wall.sleep)
    for one in (arm, fast):
        one.command(raised(0, 0.05))
        one.wait_until(0.033)
        one.command(raised(0, 0.1))
        one.wait_until(0.1)
    assert arm.now() == pytest.approx(0.1)
    assert np.array_equal(arm.read().joint_position, fast.read().joint_position)
    wall.sleep(0.5)  # nobody calls the arm, and it moves
    assert arm.read().time == pytest.approx(0.6)
    assert arm.read().joint_position[0] > fast.read().joint_position[0]
    wall.sleep(3600.0)  # an hour later it is at rest, and this takes no hour to simulate
    assert arm.read().joint_position[0] == pytest.approx(0.1, abs=0.01)
    arm.reset(0)
    assert np.array_equal(arm.read().joint_position, HOME)


def test_cameras__give_images_of_the_requested_size(opengl: None) -> None:
    arm = connected(cameras={"top": (48, 64), "wrist": (32, 32)})
    images = arm.read().images
    assert {name: image.shape for name, image in images.items()} == {"top": (48, 64, 3), "wrist": (32, 32, 3)}
    assert all(image.dtype == np.uint8 and image.std() > 0 for image in images.values())
    arm.close()
    with pytest.raises(UnknownNameError, match="unknown camera 'front'"):
        SimulatedArm(cameras={"front": (8, 8)})
