"""A robot of LeRobot as a driver: units, names, errors, and answers that never come."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest
from fake_robot import NAMES, FakeRobot

from residual_rl.config import SafetyLimitsCfg
from residual_rl.deployment.guarded_arm import GuardedArm
from residual_rl.errors import ArmError, ConfigError
from residual_rl.lerobot.arm import LeRobotArm
from residual_rl.robots.safety_limits import SafetyLimits
from residual_rl.tasks.so101_paper.hardware_units import HARDWARE


def connected(robot=None, **options):
    robot = robot or FakeRobot()
    arm = LeRobotArm(robot, HARDWARE, **options)
    arm.connect()
    return robot, arm


def test_le_robot_arm_read__degrees_and_per_cent_become_radians():
    _, arm = connected()
    reading = arm.read()
    np.testing.assert_allclose(np.degrees(reading.joint_position[:5]), [0, -5, 10, 45, 0], atol=1e-9)
    closed, opened = -0.17453, 1.74533
    assert reading.joint_position[5] == pytest.approx(closed + 0.2 * (opened - closed), abs=1e-4)
    assert reading.images["top"].shape == (4, 4, 3)
    arm.disconnect()


def test_le_robot_arm_command__sends_named_values_in_the_robots_units_and_returns_what_it_sent():
    robot, arm = connected()
    robot.cap = 5.0  # max_relative_target of LeRobot
    target = arm.read().joint_position + np.radians([2.0, 10.0, 0, 0, 0, 0])
    sent = arm.command(target)
    assert [*robot.sent[0]] == [f"{name}.pos" for name in NAMES]
    assert robot.sent[0]["shoulder_pan.pos"] == pytest.approx(2.0)
    assert robot.sent[0]["shoulder_lift.pos"] == pytest.approx(0.0)  # 5 of the 10 degrees
    assert np.degrees(sent[1]) == pytest.approx(0.0, abs=1e-9)
    arm.disconnect()


def test_le_robot_arm_hold__commands_the_measured_position():
    robot, arm = connected()
    arm.read()
    arm.hold()
    assert robot.sent[-1] == pytest.approx(dict(zip(robot.positions, [0, -5, 10, 45, 0, 20], strict=True)))
    arm.disconnect()


def test_le_robot_arm_torque_off__uses_the_bus_of_the_motors():
    robot, arm = connected()
    arm.torque_off()
    assert robot.calls == ["connect", "disable_torque"]
    del robot.bus
    with pytest.raises(ArmError, match="no way to turn its torque off"):
        arm.torque_off()
    arm.disconnect()
    arm.disconnect()
    assert robot.calls.count("disconnect") == 1


def test_le_robot_arm_connect__an_arm_that_is_not_calibrated_is_refused():
    robot = FakeRobot()
    robot.is_calibrated = False
    with pytest.raises(ArmError, match="lerobot-calibrate"):
        LeRobotArm(robot, HARDWARE).connect()


def test_le_robot_arm_connect__other_joints_or_units_are_refused():
    robot = FakeRobot()
    robot.config.use_degrees = False
    with pytest.raises(ConfigError, match="use_degrees=true"):
        LeRobotArm(robot, HARDWARE).connect()
    robot = FakeRobot()
    del robot.action_features["gripper.pos"]
    with pytest.raises(ConfigError, match=r"no gripper\.pos"):
        LeRobotArm(robot, HARDWARE).connect()


def test_le_robot_arm__an_answer_that_never_comes_does_not_keep_the_program():
    robot, arm = connected(answer_timeout=0.05)
    arm.read()
    blocked = threading.Event()
    robot.spoil = lambda obs: blocked.wait(30)
    began = time.monotonic()
    with pytest.raises(ArmError, match=r"did not answer within 0\.05 s \(get_observation\)"):
        arm.read()
    with pytest.raises(ArmError, match=r"\(hold\)"):
        arm.hold()
    assert time.monotonic() - began < 5.0
    blocked.set()


def test_le_robot_arm__an_error_of_the_bus_is_named():
    robot, arm = connected()

    def fail(obs):
        raise ConnectionError("Failed to sync read 'Present_Position'")

    robot.spoil = fail
    with pytest.raises(ArmError, match=r"get_observation.*ConnectionError: Failed to sync read"):
        arm.read()
    arm.disconnect()


def spoilt(obs, kind, generator):
    key = f"{generator.choice(NAMES)}.pos"
    others = {name: value for name, value in obs.items() if name != key}
    values = {
        "nan": float("nan"),
        "infinite": float("-inf"),
        "text": "left",
        "none": None,
        "list": [1.0, 2.0],
        "array": np.zeros(3),
        "far": 5000.0,
        "beyond floats": 10**400,
    }
    if kind in values:
        return {**others, key: values[kind]}
    return {
        "missing": others,
        "empty": {},
        "nothing": None,
        "array of all": np.zeros(6),
        "float image": {**obs, "top": np.zeros((4, 4, 3))},
        "grey image": {**obs, "top": np.zeros((4, 4, 1), np.uint8)},
    }[kind]


KINDS = (
    "nan",
    "infinite",
    "text",
    "none",
    "list",
    "array",
    "far",
    "beyond floats",
    "missing",
    "empty",
    "nothing",
)
KINDS += ("array of all", "float image", "grey image")


@pytest.mark.slow
def test_le_robot_arm__10_000_malformed_observations_move_nothing_and_end_in_a_clear_message():
    generator = random.Random(1)
    limits = SafetyLimits(SafetyLimitsCfg(), HARDWARE, 30.0)
    for number in range(10_000):
        robot = FakeRobot()
        kind = KINDS[number % len(KINDS)]
        robot.spoil = lambda obs, kind=kind: spoilt(obs, kind, generator)
        guard = GuardedArm(LeRobotArm(robot, HARDWARE, 5.0), limits)
        with pytest.raises(ArmError, match="arm") as error:
            guard.connect()
        assert "\n" not in str(error.value)
        guard.stop(str(error.value))
        guard.disconnect()
        assert robot.sent == []


@pytest.mark.parametrize("kind", KINDS)
def test_le_robot_arm_hold__amid_malformed_observations_holds_the_last_valid_position(kind):
    robot, arm = connected()
    guard = GuardedArm(arm, SafetyLimits(SafetyLimitsCfg(), HARDWARE, 30.0))
    arm.connect = lambda: None
    guard.connect()
    before = dict(robot.positions)
    guard.command(guard.read().joint_position)
    robot.spoil = lambda obs: spoilt(obs, kind, random.Random(2))
    with pytest.raises(ArmError):
        guard.read()
    assert guard.stop("malformed") is None
    assert robot.sent[-1] == pytest.approx(before)
    guard.disconnect()
