"""Teleoperators of `so101_sim`: a policy, and a person through LeRobot's controllers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from lerobot.teleoperators import make_teleoperator_from_config
from lerobot.teleoperators.gamepad import gamepad_utils
from lerobot.teleoperators.utils import TeleopEvents
from lerobot.utils.errors import DeviceNotConnectedError

from lerobot_policy_residual_rl.robot import KEYS, SO101Sim, SO101SimConfig
from lerobot_policy_residual_rl.teleoperators import (
    SO101SimLeader,
    SO101SimLeaderConfig,
    SO101SimPolicyConfig,
)
from residual_rl.errors import ConfigError, UnknownNameError

pytestmark = pytest.mark.lerobot

SOLVED = 16
"""Seed of an episode that the base policy `jacobian-yaw` solves in few steps."""


@pytest.fixture
def robot() -> Iterator[SO101Sim]:
    robot = SO101Sim(SO101SimConfig(id="sim", seed=SOLVED))
    robot.connect()
    yield robot
    robot.disconnect()


def connected(config: Any) -> Any:
    teleop = make_teleoperator_from_config(config)
    teleop.connect()
    return teleop


def test_so101_sim_policy__solves_the_task_through_lerobots_loop(robot: SO101Sim) -> None:
    teleop = connected(SO101SimPolicyConfig(robot_id="sim"))
    assert teleop.action_features == robot.action_features
    for _ in range(100):
        robot.get_observation()
        robot.send_action(teleop.get_action())
        if teleop.get_teleop_events()[TeleopEvents.SUCCESS]:
            break
    assert robot.success()
    events = teleop.get_teleop_events()
    assert events[TeleopEvents.TERMINATE_EPISODE]
    assert not events[TeleopEvents.RERECORD_EPISODE]
    assert not events[TeleopEvents.IS_INTERVENTION]


def test_so101_sim_policy__finds_the_only_robot_and_names_the_others(robot: SO101Sim) -> None:
    assert set(connected(SO101SimPolicyConfig(base_policy="jacobian")).get_action()) == set(KEYS)
    with pytest.raises(DeviceNotConnectedError, match="'real'; there are: 'sim'"):
        connected(SO101SimPolicyConfig(robot_id="real")).get_action()
    with pytest.raises(UnknownNameError, match="base policy"):
        connected(SO101SimPolicyConfig(base_policy="jacobean")).get_action()
    with pytest.raises(UnknownNameError, match="dampin"):
        connected(SO101SimPolicyConfig(base={"dampin": 0.1})).get_action()
    teleop = make_teleoperator_from_config(SO101SimPolicyConfig())
    with pytest.raises(DeviceNotConnectedError, match="call connect"):
        teleop.get_action()


class Controller(gamepad_utils.InputController):
    """LeRobot's controller with a person who moves the fingertip to the left and then ends the episode."""

    def get_deltas(self) -> tuple[float, float, float]:
        return 0.0, self.y_step_size, 0.0


@pytest.mark.parametrize("device", ["keyboard", "gamepad"])
def test_so101_sim_leader__a_person_moves_the_fingertip(
    robot: SO101Sim, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gamepad_utils, f"{device.capitalize()}Controller", Controller)
    teleop = connected(SO101SimLeaderConfig(device=device, step_size=0.005))
    before = robot.arm.quantities()["ee_position"][0]
    for _ in range(10):
        robot.send_action(teleop.get_action())
    assert float((robot.arm.quantities()["ee_position"][0] - before)[1]) == pytest.approx(0.05, abs=0.01)
    assert teleop.get_teleop_events()[TeleopEvents.IS_INTERVENTION]
    teleop._controller.episode_end_status = TeleopEvents.SUCCESS
    teleop.get_action()
    assert teleop.get_teleop_events()[TeleopEvents.SUCCESS]
    teleop.disconnect()
    assert not teleop.is_connected


def test_device__must_be_known() -> None:
    with pytest.raises(ConfigError, match="keyboard or gamepad, not 'mouse'"):
        SO101SimLeader(SO101SimLeaderConfig(device="mouse"))
