"""Limits on joint targets: always kept, never acting without need, and the same when applied again."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from residual_rl.config import SafetyLimitsCfg
from residual_rl.errors import ConfigError, NonFiniteError
from residual_rl.robots.hardware_units import HardwareUnits
from residual_rl.robots.kinematics import KinematicChain
from residual_rl.robots.safety_limits import SafetyLimits

RATE = 10.0


def planar_arm() -> KinematicChain:
    """Two links of 1 m that turn about z, with the tool at the end of the second."""
    offset = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    offset[1, 0, 3] = 1.0
    tool = torch.eye(4, dtype=torch.float64)
    tool[0, 3] = 1.0
    axis = torch.tensor([[0.0, 0.0, 1.0]] * 2, dtype=torch.float64)
    return KinematicChain(offset, axis, tool, joint_names=("shoulder", "elbow"))


@functools.cache
def limits(**changes: object) -> SafetyLimits:
    values = {"max_step": 0.5, "max_speed": 4.0, "max_jump": 0.3, **changes}
    degrees = 180.0 / math.pi
    hardware = HardwareUnits(
        ("shoulder", "elbow", "gripper"),
        ("deg", "deg", "deg"),
        (degrees,) * 3,
        (0.0,) * 3,
        (-120.0, -120.0, -60.0),
        (120.0, 120.0, 60.0),
    )
    return SafetyLimits(SafetyLimitsCfg(**values), hardware, RATE, planar_arm())


def limited(target, previous=(0.0, 0.0, 0.0), step=(0.0, 0.0, 0.0), **changes):
    rows = [torch.tensor([row], dtype=torch.float64) for row in (target, previous, step)]
    return limits(**changes)(*rows)


def test_safety_limits__a_target_within_all_limits_is_returned_as_it_is():
    result = limited((0.25, -0.1, 0.0), step=(0.1, 0.0, 0.0))
    assert result.target.tolist() == [[0.25, -0.1, 0.0]]
    assert result.changes == {}


@pytest.mark.parametrize(
    ("changes", "target", "previous", "step", "expected", "acted"),
    [
        ({}, 3.0, 2.0, 0.0, math.radians(120), {"joint": 3.0 - math.radians(120)}),
        ({"joint_margin": 0.1}, 2.05, 1.9, 0.0, math.radians(120) - 0.1, {"joint": 0.0556}),
        ({"max_jump": 9.0, "max_speed": 9.0}, 0.9, 0.0, 0.0, 0.5, {"step": 0.4}),
        ({"max_jump": 9.0, "max_step": 9.0}, 0.9, 0.0, 0.0, 0.4, {"speed": 0.5}),  # 4 rad/s at 10 Hz
        ({}, 0.4, 0.0, 0.0, 0.3, {"jump": 0.1}),
        ({}, 0.4, 0.0, 0.1, 0.4, {}),  # 0.1 faster than before
        ({}, -0.4, 0.0, 0.2, -0.1, {"jump": 0.3}),  # turns round: 0.3 less than 0.2
        ({}, 0.0, 0.0, 0.4, 0.0, {}),  # stopping is no jump
    ],
)
def test_safety_limits__each_limit_acts_by_hand(changes, target, previous, step, expected, acted):
    result = limited((target, 0.0, 0.0), (previous, 0.0, 0.0), (step, 0.0, 0.0), **changes)
    assert float(result.target[0, 0]) == pytest.approx(expected, abs=1e-6)
    sizes = {name: abs(float(change[0, 0])) for name, change in result.changes.items()}
    # the first of several limits that act takes the largest part, so only those named are checked
    for name, size in acted.items():
        assert sizes[name] == pytest.approx(size, abs=1e-3)
    assert set(acted) <= set(sizes)
    assert bool(acted) == bool(sizes)


def test_safety_limits__the_tool_stops_at_the_wall_of_the_workspace_and_the_gripper_goes_on():
    # The stretched arm at angle q has its tool at y = 2 sin q.
    wall = 2.0 * math.sin(0.1)
    result = limited((0.2, 0.0, 0.2), workspace=(-3.0, 3.0, -3.0, wall, -1.0, 1.0))
    assert result.target[0].tolist() == pytest.approx([0.1, 0.0, 0.2], abs=1e-5)
    assert result.changes["workspace"][0].tolist() == pytest.approx([-0.1, 0.0, 0.0], abs=1e-5)


def test_safety_limits__from_outside_of_the_workspace_it_may_come_back_but_not_go_on():
    box = (-3.0, 3.0, -3.0, 0.1, -1.0, 1.0)
    start = (0.2, 0.0, 0.0)
    assert limited((0.1, 0.0, 0.0), start, workspace=box).changes == {}
    further = limited((0.3, 0.0, 0.0), start, workspace=box)
    assert further.target[0, 0] == pytest.approx(0.2, abs=1e-6)


angle = st.floats(-3.0, 3.0, allow_nan=False)
row = st.tuples(angle, angle, angle)


@settings(max_examples=300, deadline=None)
@given(target=row, previous=row, step=st.tuples(*[st.floats(-0.4, 0.4)] * 3), with_box=st.booleans())
def test_safety_limits__the_result_is_within_all_limits_and_stays_when_limited_again(
    target, previous, step, with_box
):
    box = (-0.5, 1.8, -1.0, 1.0, -1.0, 1.0)
    limit = limits(**({"workspace": box} if with_box else {}))
    rows = [torch.tensor([values], dtype=torch.float64) for values in (target, previous, step)]
    result = limit(*rows)
    moved = result.target - rows[1]

    # each limit by its definition; a step of zero is always allowed
    top = math.radians(120)
    for joint, end in enumerate((top, top, top / 2)):
        at, before = float(result.target[0, joint]), previous[joint]
        assert min(-end, before) - 1e-6 <= at <= max(end, before) + 1e-6
    assert (moved.abs() <= 0.4 + 1e-9).all()  # 4 rad/s at 10 Hz, which is less than the largest step
    low, high = (rows[2] - 0.3).clamp(max=0.0), (rows[2] + 0.3).clamp(min=0.0)
    assert ((moved >= low - 1e-9) & (moved <= high + 1e-9)).all()
    if with_box:
        chain = planar_arm()

        def beyond(joints):
            x, y, _ = chain.forward(joints[:, :2])[1][0, :3, 3].tolist()
            return max(-0.5 - x, x - 1.8, -1.0 - y, y - 1.0, 0.0)

        assert beyond(result.target) <= beyond(rows[1]) + 1e-9

    again = limit(result.target, rows[1], rows[2])
    assert torch.equal(again.target, result.target)
    assert again.changes == {}
    if torch.equal(result.target, rows[0]):
        assert result.changes == {}
    else:
        assert result.changes


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(row, row), min_size=2, max_size=5))
def test_safety_limits__each_env_is_limited_as_if_it_were_alone(rows):
    limit = limits(workspace=(-0.5, 1.8, -1.0, 1.0, -1.0, 1.0))
    target, previous = (torch.tensor(part, dtype=torch.float64) for part in zip(*rows, strict=True))
    zero = torch.zeros_like(previous)
    together = limit(target, previous, zero).target
    alone = [limit(target[i : i + 1], previous[i : i + 1], zero[:1]).target for i in range(len(rows))]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=0)


def test_safety_limits__a_target_that_is_not_finite_is_an_error():
    with pytest.raises(NonFiniteError, match="joint target"):
        limited((math.nan, 0.0, 0.0))


def test_safety_limits__settings_that_leave_no_range_are_an_error():
    with pytest.raises(ConfigError, match="leaves the joint gripper no range"):
        limits(joint_margin=1.1)
    with pytest.raises(ConfigError, match="from low to high"):
        SafetyLimitsCfg(workspace=(1.0, 0.0, 0.0, 1.0, 0.0, 1.0))
