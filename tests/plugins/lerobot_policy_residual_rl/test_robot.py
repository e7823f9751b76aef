"""The robot `so101_sim` behind LeRobot's interface."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from lerobot.robots import make_robot_from_config
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from lerobot_policy_residual_rl.robot import KEYS, ROBOTS, SimulatedCamera, SO101Sim, SO101SimConfig
from residual_rl.errors import ArmError, ConfigError
from residual_rl.tasks.so101_paper.simulated_arm import SimulatedArm

pytestmark = pytest.mark.lerobot

HOME = [0.0, math.degrees(-0.45097), math.degrees(0.42976), math.degrees(1.41748), 0.0]
"""The arm's joints at the beginning of an episode [deg]."""


@pytest.fixture
def robots() -> Iterator[list[SO101Sim]]:
    """A list for connected robots, which are disconnected after the test."""
    made: list[SO101Sim] = []
    yield made
    for robot in made:
        robot.disconnect()


def connected(robots: list[SO101Sim], **options: Any) -> SO101Sim:
    robot = make_robot_from_config(SO101SimConfig(**options))
    assert isinstance(robot, SO101Sim)
    robot.connect()
    robots.append(robot)
    return robot


def moved(observation: dict[str, Any], by: float) -> dict[str, float]:
    """The present position with the first joint moved [deg]."""
    return {key: observation[key] + (by if key == KEYS[0] else 0.0) for key in KEYS}


def test_get_observation__is_in_degrees_and_has_only_what_the_features_announce(
    robots: list[SO101Sim], opengl: None
) -> None:
    robot = connected(robots, cameras={"top": SimulatedCamera(width=64, height=48)})
    observation = robot.get_observation()
    assert list(observation) == list(robot.observation_features) == [*KEYS, "top"]
    assert [observation[key] for key in KEYS[:5]] == pytest.approx(HOME, abs=1e-6)
    assert 0.0 <= observation["gripper.pos"] <= 100.0
    assert observation["top"].shape == robot.observation_features["top"] == (48, 64, 3)
    assert robot.action_features == dict.fromkeys(KEYS, float)


def test_send_action__is_one_policy_step_of_the_simulated_arm(robots: list[SO101Sim]) -> None:
    robot, arm = connected(robots, seed=3), SimulatedArm(seed=3)
    arm.connect()
    for step in range(5):
        action = moved(robot.get_observation(), 0.5 * step)
        assert robot.send_action(action) == pytest.approx(action)
        target = np.array([math.radians(action[key]) for key in KEYS[:5]])
        arm.command(np.append(target, arm.last_target[5] if step == 0 else robot.arm.last_target[5]))
        arm.wait_until(arm.now() + arm.period)
    assert robot.arm.read().joint_position == pytest.approx(arm.read().joint_position, abs=1e-9)
    assert robot.arm.now() == pytest.approx(5 * 0.033)


@pytest.mark.parametrize("limit", [2.0, dict.fromkeys([key[:-4] for key in KEYS], 2.0)], ids=["one", "each"])
def test_max_relative_target__caps_the_step(robots: list[SO101Sim], limit: Any) -> None:
    robot = connected(robots, max_relative_target=limit)
    sent = robot.send_action(moved(robot.get_observation(), 30.0))
    assert sent[KEYS[0]] == pytest.approx(2.0, abs=1e-6)


def test_send_action__refuses_what_is_not_a_position_and_the_arm_stays(robots: list[SO101Sim]) -> None:
    robot = connected(robots)
    position = {key: robot.get_observation()[key] for key in KEYS}
    with pytest.raises(ArmError, match="finite"):
        robot.send_action({**position, KEYS[0]: math.nan})
    with pytest.raises(ConfigError, match=r"lacks gripper\.pos"):
        robot.send_action({key: position[key] for key in KEYS[:5]})
    assert robot.arm.now() == 0.0
    beyond = robot.send_action({**position, "gripper.pos": 150.0})
    assert beyond["gripper.pos"] == pytest.approx(100.0)


def test_reset__begins_the_episode_of_a_seed_or_the_next(robots: list[SO101Sim]) -> None:
    robot = connected(robots, seed=3)
    robot.reset(8)
    assert robot.arm.seed == 8
    robot.reset()
    assert robot.arm.seed == 9
    assert robot.reward() < 0.0
    assert not robot.success()


def test_task__and_its_settings_are_those_of_residual_rl(robots: list[SO101Sim]) -> None:
    robot = connected(robots, task="so101-paper-precise", settings={"camera_fovy": [70, 140]})
    assert robot.arm.env.task.cfg.tolerance == 0.005
    assert robot.arm.env.task.cfg.camera_fovy == (70, 140)
    with pytest.raises(ConfigError, match="no task 'maniskill'"):
        SO101Sim(SO101SimConfig(id="other", task="maniskill")).connect()


def test_connect__twice_is_an_error_and_disconnect_frees_the_id(robots: list[SO101Sim]) -> None:
    robot = connected(robots, id="a")
    with pytest.raises(DeviceAlreadyConnectedError):
        robot.connect()
    with pytest.raises(DeviceAlreadyConnectedError, match="'a'"):
        SO101Sim(SO101SimConfig(id="a")).connect()
    robot.disconnect()
    assert not ROBOTS
    assert not robot.is_connected
    with pytest.raises(DeviceNotConnectedError):
        robot.get_observation()
