"""The guard of an arm: nothing unchecked is sent, and every failure ends in a safe stop."""

from __future__ import annotations

import dataclasses
import itertools
import random
import time

import numpy as np
import pytest
from fake_arm import FakeArm, with_joints

from residual_rl.config import SafetyLimitsCfg
from residual_rl.deployment.arm_cfg import GuardCfg
from residual_rl.deployment.guarded_arm import GuardedArm
from residual_rl.errors import ArmError, ResidualRLError
from residual_rl.robots.safety_limits import SafetyLimits
from residual_rl.tasks.so101_paper.robot import HOME

PERIOD = 1 / 30
START = np.array(HOME)


def guarded(arm=None, cfg=None, **options):
    arm = arm or FakeArm()
    limits = SafetyLimits(SafetyLimitsCfg(), arm.hardware, 30.0)
    return arm, GuardedArm(arm, limits, cfg, **options)


def run_steps(guard, num_steps, size=0.02):
    """Read, and command `size` further in each period."""
    for _ in range(num_steps):
        reading = guard.read()
        guard.command(reading.joint_position + size)
        guard.wait_until(guard.now() + PERIOD)


def test_guarded_arm__nothing_is_commanded_before_the_first_valid_reading():
    arm, guard = guarded()
    with pytest.raises(ArmError, match="no valid reading"):
        guard.command(START)
    assert arm.commands == []


def test_guarded_arm__the_first_target_starts_at_the_measured_position():
    arm, guard = guarded()
    guard.connect()
    arm.joints = START - 0.06  # the arm was moved by hand after connecting
    sent = guard.command(START)
    np.testing.assert_allclose(sent, START - 0.01, atol=1e-9)  # the jump from rest
    guard.disconnect()


def test_guarded_arm__limits_that_acted_are_reported_with_what_they_changed():
    seen = []
    _, guard = guarded(on_command=lambda reading, limited: seen.append(limited))
    guard.connect()
    guard.command(START + np.array([0.02, 0.06, 0, 0, 0, 0]))
    assert list(seen[0].changes) == ["jump"]
    np.testing.assert_allclose(seen[0].changes["jump"], [0, -0.01, 0, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(seen[0].wanted - seen[0].sent, [0, 0.01, 0, 0, 0, 0], atol=1e-12)
    guard.disconnect()


def test_guarded_arm_dry_run__nothing_is_sent_and_the_target_stays_at_the_arm():
    wanted = []
    arm, guard = guarded(dry_run=True, on_command=lambda reading, limited: wanted.append(limited.sent))
    guard.connect()
    np.testing.assert_array_equal(guard.command(START + 0.02), START)
    assert guard.stop("done") is None
    guard.disconnect()
    assert {name for name, _ in arm.log} == {"connect", "read", "disconnect"}
    np.testing.assert_allclose(wanted[0], START + 0.02)


@pytest.mark.parametrize(("at_exit", "call"), [("hold", "hold"), ("torque-off", "torque_off")])
def test_guarded_arm_stop__stops_once_as_configured_and_sends_nothing_afterwards(at_exit, call):
    arm, guard = guarded(cfg=GuardCfg(at_exit=at_exit))
    guard.connect()
    run_steps(guard, 2)
    guard.stop("enough")
    guard.stop("again")
    assert arm.calls(call) == 1
    with pytest.raises(ArmError, match="enough"):
        guard.command(START)
    assert len(arm.commands) == 2
    guard.disconnect()


def test_guarded_arm_stop__a_driver_that_fails_is_reported_and_not_raised():
    arm, guard = guarded()
    guard.connect()
    run_steps(guard, 1)
    arm.lost = True
    assert guard.stop("done") == "the arm could not be held: the cable is lost"
    # as the control loop learns it, where the watchdog was first
    assert guard.stop("again") == "the arm could not be held: the cable is lost"
    guard.disconnect()


def malformed(kind: str, value: float):
    """A function that spoils a reading in one of many ways."""
    joints = {
        "nan": lambda r: np.where(np.arange(6) == int(value * 6) % 6, np.nan, r.joint_position),
        "infinite": lambda r: np.where(np.arange(6) == int(value * 6) % 6, np.inf, r.joint_position),
        "shape": lambda r: np.zeros(int(value * 6)),
        "columns": lambda r: r.joint_position[:, None],
        "text": lambda r: ["a"] * 6,
        "none": lambda r: None,
        "ragged": lambda r: [1.0, [2.0], 3.0],
        "implausible": lambda r: r.joint_position + 6.0 + value,
    }
    if kind in joints:
        return lambda reading: with_joints(reading, joints[kind](reading))
    return {
        "nothing": lambda r: None,
        "dict": lambda r: {"shoulder_pan.pos": value},
        "time": lambda r: dataclasses.replace(r, time=float("nan")),
        "late": lambda r: dataclasses.replace(r, time=r.time - 1.0 - value),
        "future": lambda r: dataclasses.replace(r, time=r.time + 1.0 + value),
        "frozen time": lambda r: dataclasses.replace(r, time=100.0),
        "image": lambda r: dataclasses.replace(r, images={"top": np.zeros((4, 4))}),
        "images": lambda r: dataclasses.replace(r, images=[1]),
    }[kind]


KINDS = (
    *("nan", "infinite", "shape", "columns", "text", "none", "ragged", "implausible", "nothing", "dict"),
    *("time", "late", "future", "frozen time", "image", "images"),
)


@pytest.mark.slow
def test_guarded_arm_connect__10_000_malformed_readings_move_nothing_and_end_in_a_clear_message():
    generator = random.Random(0)
    for kind, _ in itertools.islice(zip(itertools.cycle(KINDS), range(10_000), strict=False), 10_000):
        arm = FakeArm()
        arm.corrupt = malformed(kind, generator.random())
        _, guard = guarded(arm)
        with pytest.raises(ArmError, match="arm") as error:
            guard.connect()
        assert "\n" not in str(error.value)
        guard.stop(str(error.value))
        guard.disconnect()
        assert {name for name, _ in arm.log} <= {"connect", "read", "disconnect"}


@pytest.mark.parametrize("kind", KINDS)
def test_guarded_arm_read__a_malformed_reading_amid_a_run_is_the_last_one(kind):
    arm, guard = guarded()
    guard.connect()
    run_steps(guard, 5)
    sent, frozen = len(arm.commands), arm.time - PERIOD
    arm.corrupt = malformed(kind, 0.5)
    if kind == "frozen time":
        arm.corrupt = lambda r: dataclasses.replace(r, time=frozen)
    with pytest.raises(ArmError):
        run_steps(guard, 5)
    assert len(arm.commands) == sent
    guard.disconnect()


def test_guarded_arm_read__frozen_joints_are_noticed_within_the_bound_and_a_few_degrees():
    arm, guard = guarded(cfg=GuardCfg(frozen_after=0.5))
    guard.connect()
    frozen = arm.joints.copy()
    arm.corrupt = lambda reading: with_joints(reading, frozen)
    began = arm.time

    def push():
        target = frozen
        for _ in range(100):
            guard.read()
            target = np.clip(target + 0.02, frozen - 0.2, frozen + 0.2)  # the task's own bound
            guard.command(target)
            guard.wait_until(guard.now() + PERIOD)

    with pytest.raises(ArmError, match="the arm is blocked, or its readings are frozen"):
        push()
    assert arm.time - began == pytest.approx(0.5, abs=3 * PERIOD)
    assert np.abs(np.array(arm.commands) - frozen).max() <= 0.2 + 1e-9
    guard.disconnect()


def test_guarded_arm_read__a_frozen_image_is_noticed_once_the_arm_has_moved():
    arm, guard = guarded()
    image = np.zeros((4, 4, 3), np.uint8)
    arm.corrupt = lambda reading: dataclasses.replace(reading, images={"top": image.copy()})
    guard.connect()
    run_steps(guard, 60, size=0.0)  # the image may stay the same while the arm does
    with pytest.raises(ArmError, match=r"camera top has given exactly the same image for .* moved by 1[78]°"):
        run_steps(guard, 60, size=-0.02)
    assert np.abs(arm.joints - START).max() < 0.33
    guard.disconnect()


def test_guarded_arm_read__an_arm_that_rests_on_its_target_is_not_frozen():
    _, guard = guarded()
    guard.connect()
    run_steps(guard, 60, size=0.0)
    guard.disconnect()


def test_guarded_arm_command__a_reading_is_used_once():
    arm, guard = guarded()
    guard.connect()
    run_steps(guard, 1)
    guard.read()
    guard.command(START)
    with pytest.raises(ArmError, match="no new reading"):
        guard.command(START)
    assert len(arm.commands) == 2
    guard.disconnect()


@pytest.mark.parametrize("target", [np.full(6, np.nan), np.zeros(5), [np.inf] * 6])
def test_guarded_arm_command__a_target_that_is_not_finite_is_refused(target):
    arm, guard = guarded()
    guard.connect()
    with pytest.raises(ResidualRLError, match="6 finite numbers"):
        guard.command(target)
    assert arm.commands == []
    guard.disconnect()


def test_guarded_arm_command__an_answer_on_an_old_reading_is_refused():
    arm, guard = guarded()
    guard.connect()
    run_steps(guard, 1)
    guard.read()
    guard._ended.set()  # without the watchdog, which would be first
    arm.time += 0.13
    with pytest.raises(ArmError, match=r"the policy took 0\.13 s"):
        guard.command(START)
    assert len(arm.commands) == 1
    guard.disconnect()


def test_guarded_arm__the_watchdog_stops_the_arm_while_the_policy_still_computes():
    arm, guard = guarded()
    guard.connect()
    run_steps(guard, 1)
    guard.read()
    read = arm.time
    for _ in range(400):  # the policy computes; the driver's clock advances by 5 ms for each 5 ms or more
        time.sleep(0.005)
        arm.time += 0.005
        if arm.calls("hold"):
            break
    held = next(at for name, at in arm.log if name == "hold")
    assert held - read > 0.12
    assert guard.stopped is not None
    with pytest.raises(ArmError, match="the policy took"):
        guard.command(START)
    guard.disconnect()


def test_guarded_arm_rest__a_pause_is_not_the_policys_time():
    arm, guard = guarded()
    guard.connect()
    run_steps(guard, 1)
    guard.read()
    guard.rest()
    arm.time += 60.0
    time.sleep(0.05)
    assert guard.stopped is None
    guard.command(arm.joints)
    guard.disconnect()


@pytest.mark.parametrize("lie", [1e6, -3.0, 0.5])
def test_guarded_arm_command__an_arm_that_reports_a_target_nobody_sent_is_stopped(lie):
    """The next target would be limited around the reported one, far from where the arm is."""
    arm, guard = guarded()
    guard.connect()
    command = arm.command
    arm.command = lambda target: command(target) + lie
    with pytest.raises(ArmError, match=r"the arm says that it was sent .*, although .* was commanded"):
        run_steps(guard, 5)
    assert len(arm.commands) == 1
    assert np.abs(arm.commands[0] - START).max() < 0.06
    guard.stop("it lies")
    assert arm.calls("hold") == 1
    guard.disconnect()


def test_guarded_arm_command__an_arm_that_limits_further_is_believed():
    arm, guard = guarded()
    guard.connect()
    command = arm.command
    arm.command = lambda target: command(0.5 * (target + arm.joints))
    run_steps(guard, 20)
    guard.disconnect()


def test_guarded_arm_read__numbers_beyond_any_float_are_an_error():
    for spoil in (
        lambda r: with_joints(r, [10**400] * 6),
        lambda r: dataclasses.replace(r, time=10**400),
        lambda r: dataclasses.replace(r, images={"top": np.zeros((0, 4, 3), np.uint8)}),
    ):
        arm, guard = guarded()
        arm.corrupt = spoil
        with pytest.raises(ArmError):
            guard.connect()
        guard.disconnect()


def test_guarded_arm_disconnect__whatever_a_driver_raises_is_no_second_error():
    arm, guard = guarded()
    guard.connect()
    arm.disconnect = lambda: 1 / 0
    guard.disconnect()
