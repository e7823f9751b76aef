"""Slow moves of an arm to a pose, for the start and the end of episodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from residual_rl.deployment.guarded_arm import GuardedArm
from residual_rl.errors import ArmError

_NEAR = 0.08
"""Distance from the pose at which the joints have reached it [rad]; servos sag under the arm's weight."""
_THERE = 0.002
"""Distance below which there is nothing to move [rad]."""
_TIMEOUT = 3.0
"""Time to come that near after the last target [s]."""


def move_to(
    arm: GuardedArm,
    goal: NDArray[np.float64],
    speed: float,
    period: float,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Move the joints to `goal` [J] in [rad] in straight lines, and wait until they are there.

    Args:
        arm: connected, at rest.
        goal: joint positions [J].
        speed: largest speed of a joint [rad/s].
        period: time between two targets [s].
        should_stop: ends the move.

    Returns:
        Whether the arm is there; False if it was stopped. In a dry run nothing moves, and the result is True.

    Raises:
        ArmError: the joints do not arrive.
    """
    arm.rest()
    target = arm.read().joint_position
    if arm.dry_run or np.abs(goal - target).max() < _THERE:
        return True
    deadline: float | None = None
    next_time = arm.now()
    while not should_stop():
        # one step towards the goal, all joints in proportion
        way = goal - target
        steps = max(float(np.abs(way).max()) / (speed * period), 1.0)
        target = arm.command(target + way / steps)
        next_time = max(next_time + period, arm.now())
        arm.wait_until(next_time)
        reading = arm.read()
        # the last target is the goal: wait for the joints
        if np.abs(goal - target).max() > 1e-6:
            continue
        away = np.abs(goal - reading.joint_position)
        if away.max() < _NEAR:
            arm.rest()
            return True
        deadline = arm.now() + _TIMEOUT if deadline is None else deadline
        if arm.now() > deadline:
            name = arm.hardware.joint_names[int(away.argmax())]
            raise ArmError(
                f"the arm did not reach its start pose: {name} is {np.degrees(away.max()):.0f}° away from it;"
                " remove what blocks it, or check its calibration"
            )
    return False
