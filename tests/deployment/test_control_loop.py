"""A policy on an arm: episodes, dry runs, and a safe stop within 200 ms of anything that goes wrong."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from fake_arm import IN_PLACE, FakeArm, with_joints

from residual_rl.config import SafetyLimitsCfg, TrainCfg
from residual_rl.deployment.arm_cfg import GuardCfg, LoopCfg
from residual_rl.deployment.arm_physics import make_arm_env
from residual_rl.deployment.control_loop import ControlLoop
from residual_rl.deployment.guarded_arm import GuardedArm
from residual_rl.errors import ArmError, NonFiniteError
from residual_rl.evaluation.compare import run_episodes
from residual_rl.evaluation.evaluate import no_residual
from residual_rl.factory import make_residual_env_on, make_vec_env
from residual_rl.robots.safety_limits import SafetyLimits
from residual_rl.tasks.so101_paper.robot import HOME
from residual_rl.tasks.so101_paper.simulated_arm import SimulatedArm

START = np.array(HOME)
PERIOD = 0.033


def loop_on(arm, cfg=None, guard_cfg=None, act=None, limits=None, dry_run=False, **options):
    """The base policy of so101-paper on `arm`."""
    simulated = make_vec_env("so101-paper", 1)
    limits = SafetyLimits(limits or SafetyLimitsCfg(), arm.hardware, simulated.control_hz)
    guard = GuardedArm(arm, limits, guard_cfg, dry_run)
    env = make_residual_env_on(
        make_arm_env(simulated, guard, arm.sheet_pose), TrainCfg.default("so101-paper")
    )
    return ControlLoop(env, act or no_residual(env), guard, cfg or LoopCfg(), **options), guard


@pytest.mark.slow
def test_control_loop__episodes_on_the_simulated_arm_solve_the_task_as_in_the_tasks_own_env():
    arm, seeds = SimulatedArm(), range(500, 503)

    def begin(number):
        arm.reset(seeds[number])
        return True

    loop, _ = loop_on(arm, LoopCfg(episodes=3, move_to_start=False), begin=begin)
    result = loop.run()
    expected = run_episodes(TrainCfg.default("so101-paper"), seeds, 3, "base")
    assert [e["success_once"] for e in result.episodes] == expected["success_once"].tolist()
    lengths = [e["episode_length"] for e in result.episodes]
    assert lengths == pytest.approx(expected["episode_length"].tolist(), abs=10)  # velocities differ
    assert result.steps == sum(lengths)
    assert (result.reason, result.failed) == ("done", None)


def test_control_loop__the_arm_moves_to_the_tasks_start_pose_at_the_given_speed_first():
    arm = FakeArm(START - 0.3)
    arm.sheet = IN_PLACE
    loop, _ = loop_on(arm, LoopCfg(start_speed=0.5))
    loop.run()
    first_step = next(i for i, target in enumerate(arm.commands) if np.allclose(target, START))
    moves = np.diff([START - 0.3, *arm.commands[: first_step + 1]], axis=0)
    assert np.abs(moves).max() == pytest.approx(0.5 * PERIOD, abs=1e-9)
    assert len(moves) == round(0.3 / (0.5 * PERIOD) + 0.49)
    assert len(loop.result.episodes) == 1
    assert loop.result.episodes[0]["success_once"] == 1.0


def test_control_loop__a_start_pose_that_is_not_reached_is_an_error_and_a_stop():
    arm = FakeArm(START - 0.3)
    arm.corrupt = lambda reading: with_joints(reading, START - 0.3 + 0.1 * np.sin(reading.time))
    loop, _ = loop_on(arm)
    with pytest.raises(ArmError, match="did not reach its start pose"):
        loop.run()
    assert arm.calls("hold") == 1


def test_control_loop__the_time_limit_ends_the_loop():
    arm = FakeArm()
    loop, _ = loop_on(arm, LoopCfg(seconds=1.0))
    assert loop.run().reason == "1 s have passed"
    assert loop.result.steps == 31


def test_control_loop__a_time_limit_after_the_watchdogs_stop_is_still_a_failure():
    arm = FakeArm()

    def act(obs):
        if len(arm.commands) == 10:
            guard.stop("the policy took 0.20 s")  # as the watchdog does beside it
            arm.time += 1.0
        return torch.zeros(1, 6)

    loop, guard = loop_on(arm, LoopCfg(seconds=1.0), act=act)
    with pytest.raises(ArmError, match=r"the policy took 0\.20 s"):
        loop.run()
    assert len(arm.commands) == 10


def test_control_loop_dry_run__nothing_is_sent():
    arm = FakeArm(START - 0.3)
    loop, _ = loop_on(arm, LoopCfg(seconds=1.0), dry_run=True)
    assert loop.run().steps == 31
    assert {name for name, _ in arm.log} == {"connect", "read", "disconnect"}
    np.testing.assert_array_equal(arm.joints, START - 0.3)


def stopped_after(arm, began):
    """Time on the driver's clock from `began` to the stop [s], after which nothing is sent."""
    names = [name for name, _ in arm.log]
    stop = max(i for i, name in enumerate(names) if name in ("hold", "torque_off"))
    assert "command" not in names[stop:]
    return arm.log[stop][1] - began


@pytest.mark.parametrize("at_exit", ["hold", "torque-off"])
def test_control_loop__a_signal_ends_in_a_stop_within_200_ms(at_exit):
    arm, signalled = FakeArm(), []
    arm.on_wait = lambda: signalled.append(arm.time) if len(arm.commands) == 10 and not signalled else None
    loop, _ = loop_on(arm, guard_cfg=GuardCfg(at_exit=at_exit), should_stop=lambda: bool(signalled))
    assert loop.run().reason == "stopped by a signal"
    assert 0.0 <= stopped_after(arm, signalled[0]) < 0.2
    assert arm.calls(at_exit.replace("-", "_")) == 1


@pytest.mark.parametrize("moment", ["before the policy", "after the policy", "in the wait"])
def test_control_loop__a_signal_beside_a_slow_policy_ends_in_a_stop_within_200_ms(moment):
    arm, signalled = FakeArm(), []

    def receive(here):
        if here == moment and len(arm.commands) == 10 and not signalled:
            signalled.append(arm.time)

    def act(obs):
        receive("before the policy")
        arm.time += 0.1  # below the bound of 0.12 s
        receive("after the policy")
        return torch.zeros(1, 6)

    arm.on_wait = lambda: receive("in the wait")
    loop, _ = loop_on(arm, act=act, should_stop=lambda: bool(signalled))
    assert loop.run().reason == "stopped by a signal"
    assert stopped_after(arm, signalled[0]) < 0.2
    assert len(arm.commands) == 10


def test_control_loop__a_signal_during_the_move_to_the_start_ends_it():
    arm, signalled = FakeArm(START - 0.3), []
    arm.on_wait = lambda: signalled.append(arm.time) if len(arm.commands) == 3 and not signalled else None
    loop, _ = loop_on(arm, should_stop=lambda: bool(signalled))
    assert loop.run().reason == "stopped by a signal"
    assert stopped_after(arm, signalled[0]) < 0.2
    assert loop.result.steps == 0


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_control_loop__an_exception_in_the_policy_ends_in_a_stop_within_200_ms(error):
    arm, raised = FakeArm(), []

    def act(obs):
        if len(arm.commands) == 10:
            raised.append(arm.time)
            raise error
        return torch.zeros(1, 6)

    loop, _ = loop_on(arm, act=act)
    with pytest.raises(type(error)):
        loop.run()
    assert stopped_after(arm, raised[0]) < 0.2
    assert arm.log[-1][0] == "disconnect"


def test_control_loop__a_lost_cable_ends_in_an_attempt_to_stop_and_a_clear_message():
    arm = FakeArm()

    def lose():
        arm.lost = arm.lost or len(arm.commands) == 10

    arm.on_wait = lose
    loop, guard = loop_on(arm)
    with pytest.raises(ArmError, match="the cable is lost"):
        loop.run()
    assert stopped_after(arm, arm.time) < 0.2
    assert loop.result.failed == "the arm could not be held: the cable is lost"
    assert guard.stopped == "the cable is lost"


def test_control_loop__the_simulated_arm_that_loses_its_cable_gets_no_further_command():
    arm = SimulatedArm()
    loop, _ = loop_on(arm, LoopCfg(move_to_start=False), begin=lambda number: arm.lose_cable(1.0) or True)
    with pytest.raises(ArmError, match="connection to the simulated arm is lost"):
        loop.run()
    assert loop.result.steps in (29, 30)
    assert "could not be held" in loop.result.failed


def test_control_loop__a_policy_that_is_not_finite_sends_nothing():
    arm = FakeArm()

    def act(obs):
        return torch.full((1, 6), torch.nan if len(arm.commands) == 5 else 0.0)

    loop, _ = loop_on(arm, act=act)
    with pytest.raises(NonFiniteError, match="action"):
        loop.run()
    assert len(arm.commands) == 5
    assert arm.calls("hold") == 1


def test_control_loop__a_policy_that_answers_late_is_stopped_while_it_computes():
    arm, began = FakeArm(), []

    def act(obs):
        if len(arm.commands) == 10:
            began.append(arm.time)
            for _ in range(200):  # the driver's clock runs no faster than the wall's
                time.sleep(0.005)
                arm.time += 0.004
                if arm.calls("hold"):
                    break
        return torch.zeros(1, 6)

    loop, _ = loop_on(arm, act=act)
    with pytest.raises(ArmError, match="the policy took"):
        loop.run()
    assert arm.calls("hold") == 1
    assert len(arm.commands) == 10
    assert stopped_after(arm, began[0]) > 0.12


def test_control_loop__every_command_keeps_the_limits():
    arm = FakeArm()
    loop, _ = loop_on(
        arm,
        LoopCfg(seconds=2.0),
        act=lambda obs: torch.sign(torch.sin(40 * obs["elapsed_steps"])).expand(1, 6),
        limits=SafetyLimitsCfg(max_step=0.012, max_jump=0.005),
    )
    loop.run()
    moves = np.diff([START, *arm.commands], axis=0)
    assert np.abs(moves).max() <= 0.012 + 1e-9
    faster = np.abs(moves[1:]) - np.abs(moves[:-1])
    assert faster[np.sign(moves[1:]) == np.sign(moves[:-1])].max() <= 0.005 + 1e-9
