"""The person beside a robot: interventions, the end of episodes, and resets of the scene."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from residual_rl.base_policies.callables import load_callable
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError, NonFiniteError
from residual_rl.types import Obs

_KEY_SECONDS = 0.15
"""Time for which a key counts as held after the terminal has reported it [s]; terminals repeat held keys."""
_ESCAPE_SEQUENCE = re.compile(r"\x1b[\[O][0-?]*[ -/]*[@-~]")
"""What a terminal sends for an arrow or function key; it is no escape key."""
_JOINT_KEYS = (("a", "q"), ("s", "w"), ("d", "e"), ("f", "r"), ("g", "t"), ("h", "y"), ("j", "u"), ("k", "i"))
"""Keys that lower and raise each action."""


@dataclass(frozen=True)
class Signals:
    """What a person wants at one step."""

    action: Tensor | None = None
    """[A] in [-1, 1]: an intervention, to be executed in place of the policy's action."""
    success: bool = False
    """The task is solved: end the episode."""
    end: bool = False
    """End the episode without success."""
    stop: bool = False
    """End the session."""


class Operator(Protocol):
    """The person beside the robot. Neither method may take longer than a fraction of a control step, except
    that `prepare` may wait for the person."""

    def signals(self, obs: Obs) -> Signals:
        """What the person wants now, at the observation `obs` ([1, …] each)."""
        ...

    def prepare(self, should_stop: Callable[[], bool]) -> None:
        """Wait until the scene is prepared for the next episode, or `should_stop`."""
        ...

    def close(self) -> None:
        """Free what the operator uses. May be called more than once."""
        ...


class NoOperator:
    """Nobody."""

    def signals(self, obs: Obs) -> Signals:  # noqa: ARG002
        return Signals()

    def prepare(self, should_stop: Callable[[], bool]) -> None:  # noqa: ARG002
        raise ConfigError("nobody is there to prepare the scene: choose --reset automatic, or an operator")

    def close(self) -> None:
        pass


class KeyboardOperator:
    """A person at the keyboard of the terminal.

    Enter: success; backspace: end the episode; escape: stop; space: take over, and hand back. While the
    person has taken over, the keys Q, W, E, R, T, Y, … raise the actions 1, 2, 3, …, and the keys below them
    lower them.

    Args:
        env: the robot.
        speed: size of the action of a key, at most 1.

    Raises:
        ConfigError: standard input is not a terminal, or there are more actions than keys.
    """

    def __init__(self, env: VecEnv, speed: float = 1.0):
        if not sys.stdin.isatty():
            raise ConfigError(
                "--operator keyboard needs a terminal: choose --operator none, or MODULE:NAME, and "
                "--reset automatic"
            )
        self._action_dim = len(env.action_unit)
        if self._action_dim > len(_JOINT_KEYS):
            raise ConfigError(f"the keyboard commands at most {len(_JOINT_KEYS)} actions")
        self._speed = speed
        self._taken_over = False
        self._held: dict[str, float] = {}
        """When each key was last reported."""
        self._terminal = _raw_terminal()
        self._terminal.__enter__()

    def signals(self, obs: Obs) -> Signals:  # noqa: ARG002
        now, typed = time.monotonic(), _typed()
        self._held |= dict.fromkeys(typed, now)
        if typed.count(" ") % 2:
            self._taken_over = not self._taken_over
        return Signals(
            action=self._action(now) if self._taken_over else None,
            success="\n" in typed,
            end="\x7f" in typed or "\b" in typed,
            stop="\x1b" in typed,
        )

    def _action(self, now: float) -> Tensor:
        """The action of the keys that are held."""
        held = {key for key, time in self._held.items() if now - time <= _KEY_SECONDS}
        values = [float(up in held) - float(down in held) for down, up in _JOINT_KEYS[: self._action_dim]]
        return self._speed * torch.tensor(values)

    def prepare(self, should_stop: Callable[[], bool]) -> None:
        self._taken_over = False
        wait_for_enter(should_stop)

    def close(self) -> None:
        """Give the terminal back."""
        self._terminal.__exit__(None, None, None)


class TeleoperatorOperator:
    """A person with a teleoperator of LeRobot, such as a leader arm, whose actions are joint positions.

    Its `get_teleop_events()`, if it has them, tell when the person intervenes and ends episodes; without
    them, the person always commands. Use it from a function that connects the teleoperator, and name that
    with `--operator`:

        def leader(env):
            teleoperator = SO101Leader(SO101LeaderConfig(port="/dev/ttyACM1", use_degrees=True))
            teleoperator.connect()
            return TeleoperatorOperator(teleoperator, env)

    Args:
        teleoperator: connected; `get_action()` gives `NAME.pos` of each joint in the robot's units.
        env: the robot, with `hardware` units.
    """

    def __init__(self, teleoperator: Any, env: VecEnv):
        if env.hardware is None:
            raise ConfigError("a teleoperator commands joints of a real robot, which this task does not name")
        self._teleoperator = teleoperator
        self._is_open = True
        self._env = env
        self._hardware = env.hardware

    def signals(self, obs: Obs) -> Signals:
        events = {"is_intervention": True}
        if hasattr(self._teleoperator, "get_teleop_events"):
            given = self._teleoperator.get_teleop_events()
            events = {str(getattr(name, "value", name)): bool(value) for name, value in given.items()}
        return Signals(
            action=self._action(obs) if events.get("is_intervention") else None,
            success=events.get("success", False),
            end=events.get("terminate_episode", False),
        )

    def _action(self, obs: Obs) -> Tensor:
        """The action that moves the joints towards those of the teleoperator."""
        given = self._teleoperator.get_action()
        values = torch.tensor([float(given[f"{name}.pos"]) for name in self._hardware.joint_names])
        target = self._hardware.from_hardware(values).to(self._env.device)
        return self._env.targets_to_actions(target.reshape(1, 1, -1), obs)[0, 0]

    def prepare(self, should_stop: Callable[[], bool]) -> None:
        wait_for_enter(should_stop)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._teleoperator.disconnect()


def make_operator(name: str, env: VecEnv) -> Operator:
    """The operator `keyboard`, `none` or `MODULE:NAME`."""
    if name == "none":
        return NoOperator()
    if name == "keyboard":
        return KeyboardOperator(env)
    operator: Operator = load_callable(name, "operator")(env)
    return operator


def checked_action(action: Tensor, action_dim: int, device: torch.device) -> Tensor:
    """The action [1, A] of a person, clipped to [-1, 1]. Raises an error if it is no such action."""
    if tuple(action.shape) != (action_dim,):
        raise ConfigError(f"the operator's action must have shape ({action_dim},), not {tuple(action.shape)}")
    if not torch.isfinite(action).all():
        raise NonFiniteError("the operator's action is not finite")
    return action.to(device, torch.float32).clamp(-1.0, 1.0)[None]


# --- the terminal -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Read keys at once and without echo."""
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def wait_for_enter(should_stop: Callable[[], bool]) -> None:
    """Ask the user to prepare the scene, and wait for Enter, or until `should_stop`. Raises `ConfigError` if
    nobody can press it."""
    print("Prepare the scene, then press Enter.", file=sys.stderr, flush=True)
    while not should_stop() and "\n" not in _typed(wait=True):
        pass


def _typed(wait: bool = False) -> str:
    """The keys typed since the last call; with `wait`, after waiting for a tenth of a second.

    Raises `ConfigError` when waiting for keys that can never come.
    """
    fd = sys.stdin.fileno()
    ready, _, _ = select.select([fd], [], [], 0.1 if wait else 0.0)
    if not ready:
        return ""
    typed = os.read(fd, 1024).decode(errors="replace")
    if wait and not typed:
        raise ConfigError("standard input has ended, so that nobody can press Enter: use a terminal")
    return _ESCAPE_SEQUENCE.sub("", typed)
