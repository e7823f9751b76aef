"""What clients of policy servers share: waiting for one, its handshake, checks of what it gives, the joints as robots name them."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, ConfigError
from residual_rl.hardware import HardwareUnits
from residual_rl.serving.wire import MAX_MESSAGE_BYTES, WireError, one_line, unpack

T = TypeVar("T")

HANDSHAKE = "residual_rl"
"""Under this name a server of ours tells its handshake."""
ACTIONS, UNCERTAINTY = "residual_rl.actions", "residual_rl.uncertainty"
"""Under these names it tells, besides joint positions, the actions that they were made of, to clients that ask for the first."""
TOKEN_VARIABLE = "RESIDUAL_RL_TOKEN"
GRIPPER = "gripper"
"""What a robot's software calls the joint that is told apart from the arm's."""
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 5.0
_MOST_STEPS = 1000
_log = logging.getLogger(__name__)


class ServerGone(Exception):  # noqa: N818 (it is caught here, and becomes an error if waiting does not help)
    """A server did not answer. Asking again may help."""


def secret(token: str | None) -> str | None:
    """The token that is to be used: as given, or from the environment, where no settings are saved with it."""
    return token or os.environ.get(TOKEN_VARIABLE) or None


def keep_asking(attempt: Callable[[], T], server: str, window: float) -> T:
    """The result of `attempt`, which is made again while it raises `ServerGone`, after ever longer pauses, for `window` [s] at most.

    A warning tells that the run waits. Raises `BasePolicyError` when the window is over.
    """
    began, delay = None, _FIRST_DELAY
    while True:
        try:
            return attempt()
        except ServerGone as gone:
            now = time.monotonic()
            if began is None:
                began = now
                if window > 0:
                    _log.warning("%s: %s; waiting up to %g s for it", server, gone, window)
            left = began + window - now
            if left <= 0:
                waited = f", nor in the {window:g} s after that" if window > 0 else ""
                raise BasePolicyError(
                    f"{server}: {gone}{waited}; start it, or raise --base.timeout or --base.reconnect if it is only slow"
                ) from gone
            time.sleep(min(delay, left))
            delay = min(2 * delay, _LONGEST_DELAY)


def read_message(data: bytes, server: str, expected: str) -> Any:
    """What a server's message holds. Raises `BasePolicyError` where it is none, or too large."""
    try:
        return unpack(data)[0]
    except WireError as error:
        raise BasePolicyError(f"{server} sent {error}; expected {expected}") from error


def too_large(server: str) -> BasePolicyError:
    """What to raise where a server's message is cut off for its size."""
    return BasePolicyError(f"{server} sent a message of more than {MAX_MESSAGE_BYTES:,} bytes: no policy's reply is that large")


def numbers(value: Any, name: str, shapes: Collection[tuple[int, ...]], server: str) -> Tensor:
    """`value`, float64, which must be an array of one of the `shapes` (-1: any size) with finite numbers. Raises `BasePolicyError`."""
    expected = f"expected floats of shape {' or '.join(map(_shape_text, shapes))}"
    if not isinstance(value, np.ndarray):
        raise BasePolicyError(f"{server} gave {name} as {type(value).__name__}; {expected}")
    if value.dtype.kind != "f":
        raise BasePolicyError(f"{server} gave {name} of dtype {value.dtype}; {expected}")
    if not any(len(value.shape) == len(s) and all(n in (-1, m) for n, m in zip(s, value.shape, strict=True)) for s in shapes):
        raise BasePolicyError(f"{server} gave {name} of shape {value.shape}; {expected}")
    if not np.isfinite(value).all():
        raise BasePolicyError(f"{server} gave {name} with NaN or infinity; expected finite numbers")
    return torch.from_numpy(value.astype(np.float64))


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"({', '.join('any' if n < 0 else str(n) for n in shape)}{',' * (len(shape) == 1)})"


# --- the env's side -----------------------------------------------------------------------------------------------------


def observed(env: VecEnv) -> Mapping[str, spaces.Space[Any]]:
    """The observations of `env`, by name, without the batch."""
    assert isinstance(env.single_observation_space, spaces.Dict)
    return env.single_observation_space.spaces


def shape_of(env: VecEnv, name: str) -> tuple[int, ...]:
    """The shape of an observation of `env`, without the batch."""
    return tuple(observed(env)[name].shape or ())


def is_image(space: spaces.Space[Any]) -> bool:
    """Whether it is a camera's: uint8 [H, W, C]."""
    return space.dtype == np.uint8 and len(space.shape or ()) == 3


def conversion_inputs(env: VecEnv) -> tuple[str, ...]:
    """The observations that `env` reads to turn joint targets into actions and back: none where actions are the targets themselves.

    It is asked without observations, and names what it misses. Raises `ConfigError` where actions command no joint targets.
    """
    try:
        env.actions_to_targets(torch.zeros(1, 1, len(env.action_size), device=env.device), {})
    except KeyError as missing:
        return (str(missing.args[0]),)
    return ()


def parse_pairs(pairs: Iterable[str], setting: str) -> dict[str, str]:
    """`{key: name}` of texts `name=key`, or `name` where both are the same."""
    parsed: dict[str, str] = {}
    for pair in pairs:
        name, _, key = pair.partition("=")
        key = key or name
        if not name or key in parsed:
            raise ConfigError(f"{setting} {pair!r}: expected ENV_NAME=SERVER_KEY, each key once")
        parsed[key] = name
    return parsed


class ArmJoints:
    """The joints of a robot as its servers know them: the arm's, and the gripper's if it has one.

    Args:
        hardware: names and units of the joints.
        inverted: whether the server's gripper is 0 where the robot's is 100.
        radians: whether the server measures in [rad], not in the robot's own units.
    """

    def __init__(self, hardware: HardwareUnits, inverted: bool = False, radians: bool = False):
        self.hardware, self._inverted, self._radians = hardware, inverted, radians
        names = hardware.joint_names
        self.arm = [i for i, name in enumerate(names) if name != GRIPPER]
        self.gripper = [i for i, name in enumerate(names) if name == GRIPPER]
        self._order = torch.tensor([*self.arm, *self.gripper]).argsort()

    def to_server(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """The arm [..., arm] and the gripper [..., 1 or 0] in the server's units, float64, of joint `angles` [..., J] in [rad]."""
        values = self._turned(self.hardware.to_hardware(angles))
        if self._radians:
            values = self.hardware.from_hardware(values)
        return values[..., self.arm], values[..., self.gripper]

    def from_server(self, arm: Tensor, gripper: Tensor) -> Tensor:
        """Joint angles [..., J] in [rad], float64: the way back."""
        values = torch.cat([arm, gripper], -1)[..., self._order].double()
        if self._radians:
            values = self.hardware.to_hardware(values)
        return self.hardware.from_hardware(self._turned(values))

    def _turned(self, values: Tensor) -> Tensor:
        """Hardware units with the gripper's polarity turned around."""
        if self._inverted:
            values = values.clone()
            for i in self.gripper:
                values[..., i] = self.hardware.low[i] + self.hardware.high[i] - values[..., i]
        return values


# --- the handshake of a server of ours ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServedInput:
    """An observation that a served policy needs."""

    key: str
    """What the protocol calls it."""
    shape: tuple[int, ...]
    """Without batch and time."""
    dtype: str


@dataclass(frozen=True)
class Handshake:
    """What a server of ours tells of the policy that it serves."""

    protocol: str
    task: str
    policy: str
    inputs: dict[str, ServedInput]
    """By the observation's name in the task."""
    chunk_size: int
    num_action_steps: int
    num_obs_steps: int
    action_units: str
    """`normalized`: the env's actions; `hardware`: absolute joint positions in the robot's own units."""
    action_size: tuple[float, ...]
    """What a normalised action of 1 means."""

    def to_wire(self) -> dict[str, Any]:
        """Plain values, for a message."""
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, value: Any, server: str) -> Handshake:
        """What `to_wire` gave. Raises `BasePolicyError` where it is something else."""
        try:
            inputs = {
                str(name): ServedInput(str(entry["key"]), tuple(int(n) for n in entry["shape"]), str(entry["dtype"]))
                for name, entry in value["inputs"].items()
            }
            told = cls(
                protocol=str(value["protocol"]),
                task=str(value["task"]),
                policy=str(value["policy"]),
                inputs=inputs,
                chunk_size=int(value["chunk_size"]),
                num_action_steps=int(value["num_action_steps"]),
                num_obs_steps=int(value["num_obs_steps"]),
                action_units=str(value["action_units"]),
                action_size=tuple(float(x) for x in value["action_size"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BasePolicyError(f"{server} sent a handshake that cannot be read: {one_line(repr(error))}") from error
        sizes = told.num_action_steps, told.chunk_size, told.num_obs_steps
        if not 1 <= sizes[0] <= sizes[1] <= _MOST_STEPS or not 1 <= sizes[2] <= _MOST_STEPS:
            raise BasePolicyError(f"{server} sent a handshake with the impossible num_action_steps, chunk_size, num_obs_steps {sizes}")
        return told

    def acts_as(self, env: VecEnv) -> bool:
        """Whether normalised actions mean the same to both."""
        mine = env.action_size.tolist()
        return len(mine) == len(self.action_size) and np.allclose(mine, self.action_size, rtol=1e-6, atol=0.0)

    def check(self, env: VecEnv, protocol: str, server: str) -> None:
        """Raise `ConfigError` where the server speaks another protocol, or needs what `env` does not observe."""
        if self.protocol != protocol:
            raise ConfigError(f"{server} speaks the protocol {self.protocol!r}, not {protocol!r}")
        spaces = observed(env)
        missing = [
            f"{name} {list(served.shape)} {served.dtype}"
            for name, served in self.inputs.items()
            if name not in spaces or shape_of(env, name) != served.shape or str(spaces[name].dtype) != served.dtype
        ]
        if missing:
            has = ", ".join(f"{name} {list(shape_of(env, name))} {space.dtype}" for name, space in spaces.items())
            raise ConfigError(f"{server} serves {self.policy!r} of task {self.task!r}, which needs {', '.join(missing)}; the env has {has}")
