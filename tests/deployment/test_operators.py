"""The person beside a robot: keys of a terminal, and teleoperators of LeRobot."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch

from residual_rl.deployment.operators import (
    KeyboardOperator,
    NoOperator,
    TeleoperatorOperator,
    checked_action,
    make_operator,
)
from residual_rl.envs.task_env import TaskEnv
from residual_rl.errors import ConfigError, NonFiniteError
from residual_rl.factory import make_vec_env


@pytest.fixture(scope="module")
def env() -> Any:
    made = make_vec_env("so101-paper", 1, num_threads=1)
    made.reset(seed=0)
    return made


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The end of a terminal at which a test types."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield ours
    os.close(ours)


def typed(operator: KeyboardOperator, keys: int, text: str) -> Any:
    os.write(keys, text.encode())
    return operator.signals({})


def test_keyboard_operator__space_takes_over_and_keys_raise_and_lower_actions(
    env: TaskEnv, keys: int
) -> None:
    operator = KeyboardOperator(env, speed=0.5)
    assert typed(operator, keys, "q").action is None
    assert typed(operator, keys, " ").action.tolist() == [0.5, 0.0, 0.0, 0.0, 0.0, 0.0]  # q is still held
    operator._held.clear()
    assert typed(operator, keys, "sr").action.tolist() == [0.0, -0.5, 0.0, 0.5, 0.0, 0.0]
    operator._held.clear()
    assert typed(operator, keys, "").action.tolist() == [0.0] * 6
    assert typed(operator, keys, " ").action is None
    operator.close()


@pytest.mark.parametrize(("key", "signal"), [("\n", "success"), ("\x7f", "end"), ("\x1b", "stop")])
def test_keyboard_operator__keys_end_episode_and_session(
    env: TaskEnv, keys: int, key: str, signal: str
) -> None:
    operator = KeyboardOperator(env)
    signals = typed(operator, keys, key)
    assert [name for name in ("success", "end", "stop") if getattr(signals, name)] == [signal]
    operator.close()


def test_keyboard_operator__arrow_keys_do_not_end_the_session(env: TaskEnv, keys: int) -> None:
    operator = KeyboardOperator(env)
    for key in ("\x1b[A", "\x1bOB", "\x1b[1;5C", "\x1b[3~"):
        assert not typed(operator, keys, key).stop
    assert typed(operator, keys, "\x1b[A\x1b").stop
    operator.close()


def test_keyboard_operator_prepare__waits_for_enter_or_a_stop(env: TaskEnv, keys: int) -> None:
    operator = KeyboardOperator(env)
    os.write(keys, b"x\n")
    operator.prepare(lambda: False)
    operator.prepare(lambda: True)
    operator.close()


def test_keyboard_operator__needs_a_terminal(env: TaskEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(ConfigError, match="needs a terminal: choose --operator none"):
        make_operator("keyboard", env)


class Leader:
    """A leader arm, in degrees, with the gripper from 0 to 100."""

    def __init__(self, **events: bool):
        self.events = {Enum("TeleopEvents", {name: name})[name]: value for name, value in events.items()}
        self.connected = True

    def get_action(self) -> dict[str, float]:
        names = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
        return {**{f"{name}.pos": 0.0 for name in names}, "gripper.pos": 0.0}

    def get_teleop_events(self) -> dict[Any, bool]:
        return self.events

    def disconnect(self) -> None:
        self.connected = False


def test_teleoperator_operator__moves_towards_the_joints_of_the_leader(env: TaskEnv) -> None:
    assert env.hardware is not None
    obs = env.observations()
    signals = TeleoperatorOperator(Leader(is_intervention=True), env).signals(obs)
    values = torch.zeros(6)
    way = env.hardware.from_hardware(values) - obs["joint_target"][0].double()
    assert signals.action is not None
    assert torch.allclose(signals.action.double(), (way / 0.02).clamp(-1.0, 1.0), atol=1e-5)


def test_teleoperator_operator__its_events_say_who_commands_and_when_an_episode_ends(env: TaskEnv) -> None:
    obs = env.observations()
    idle = TeleoperatorOperator(Leader(is_intervention=False, success=True), env).signals(obs)
    assert idle.action is None
    assert idle.success
    assert not idle.end
    ended = TeleoperatorOperator(Leader(is_intervention=False, terminate_episode=True), env).signals(obs)
    assert ended.end


def test_teleoperator_operator_close__disconnects_once(env: TaskEnv) -> None:
    leader = Leader()
    operator = TeleoperatorOperator(leader, env)
    operator.close()
    assert not leader.connected
    del leader.connected
    operator.close()
    assert not hasattr(leader, "connected")


def test_teleoperator_operator_prepare__ends_where_nobody_can_press_enter(
    env: TaskEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        late = iter([False] * 3 + [True] * 10)
        with pytest.raises(ConfigError, match="nobody can press Enter"):
            TeleoperatorOperator(Leader(), env).prepare(lambda: next(late))


def test_make_operator__by_name(env: TaskEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_operator("none", env), NoOperator)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    assert type(make_operator("robot_rehearsal:person", env)).__name__ == "Person"


def test_checked_action__clips_and_refuses() -> None:
    device = torch.device("cpu")
    assert checked_action(torch.tensor([2.0, -3.0]), 2, device).tolist() == [[1.0, -1.0]]
    with pytest.raises(ConfigError, match=r"must have shape \(2,\), not \(3,\)"):
        checked_action(torch.zeros(3), 2, device)
    with pytest.raises(NonFiniteError):
        checked_action(torch.tensor([0.0, torch.inf]), 2, device)
