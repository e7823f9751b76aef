"""What commands a simulated arm: a policy, and a person at a keyboard or gamepad."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from residual_rl.deployment.arm_operators import EVENTS, FingertipOperator, PolicyOperator
from residual_rl.tasks.so101_paper.config import SO101PaperCfg
from residual_rl.tasks.so101_paper.simulated_arm import SimulatedArm

SOLVED = 16
"""Seed of an episode that the base policy `jacobian-yaw` solves in few steps."""


def connected(seed: int = 0, **settings: Any) -> SimulatedArm:
    arm = SimulatedArm(SO101PaperCfg(**settings), seed)
    arm.connect()
    return arm


def drive(operator: PolicyOperator | FingertipOperator, steps: int) -> int:
    """Number of steps until the operator ends the episode, at most `steps`."""
    arm = operator.arm
    for step in range(steps):
        arm.command(operator.joint_target())
        arm.wait_until(arm.now() + arm.period)
        if operator.events()["terminate_episode"]:
            return step + 1
    return steps


def test_policy_operator__solves_the_task_and_then_holds_the_arm() -> None:
    arm = connected(SOLVED)
    operator = PolicyOperator(arm, "jacobian-yaw")
    steps = drive(operator, 400)
    assert 20 < steps < 100
    expected = {
        "success": True,
        "terminate_episode": True,
        "rerecord_episode": False,
        "is_intervention": False,
    }
    assert operator.events() == expected
    last = arm.last_target
    assert np.array_equal(operator.joint_target(), last)
    arm.reset(SOLVED)  # the policy starts anew
    assert drive(operator, 400) == steps


def test_policy_operator__an_episode_at_its_limit_is_to_be_recorded_again() -> None:
    operator = PolicyOperator(connected(max_episode_steps=3), "zero")
    assert drive(operator, 9) == 3
    events = operator.events()
    assert tuple(events) == EVENTS
    assert (events["success"], events["rerecord_episode"]) == (False, True)


def test_fingertip_operator__moves_while_a_person_commands_and_holds_otherwise() -> None:
    commands = [{"move": (0.0, 0.004, 0.0), "grip": 0.0, "end": None}] * 5
    commands += [{"move": (0.0, 0.0, 0.0), "grip": 0.0, "end": None}] * 10
    arm = connected()
    left = iter(commands)
    operator = FingertipOperator(arm, lambda: next(left))
    before = arm.quantities()["ee_position"][0]
    drive(operator, 5)
    assert operator.events()["is_intervention"]
    drive(operator, 10)
    assert not operator.events()["is_intervention"]
    assert float((arm.quantities()["ee_position"][0] - before)[1]) == pytest.approx(0.02, abs=0.004)


@pytest.mark.parametrize("end", ["success", "failure", "rerecord_episode"])
def test_fingertip_operator__a_person_ends_the_episode(end: str) -> None:
    operator = FingertipOperator(connected(), lambda: {"move": (0, 0, 0), "grip": 0.0, "end": end})
    assert drive(operator, 9) == 1
    events = operator.events()
    assert (events["success"], events["rerecord_episode"]) == (end == "success", end == "rerecord_episode")
