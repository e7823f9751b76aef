"""The handshake of `residual-rl serve`: the description of the served policy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from residual_rl.envs.spaces import observed, shape_of
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, ConfigError
from residual_rl.utils.text import one_line

HANDSHAKE = "residual_rl"
"""Key of the handshake in a message."""
_MOST_STEPS = 1000


@dataclass(frozen=True)
class ServedInput:
    """An observation that a served policy needs."""

    key: str
    """Key in the protocol."""
    shape: tuple[int, ...]
    """Shape without the axes of batch and time."""
    dtype: str


@dataclass(frozen=True)
class Handshake:
    """Description of the policy behind `residual-rl serve`."""

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
    action_unit: tuple[float, ...]
    """Change that a normalised action of 1 commands, for each dimension."""

    def to_wire(self) -> dict[str, Any]:
        """Plain values for a message."""
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, value: Any, server: str) -> Handshake:
        """Inverse of `to_wire`. Raises `BasePolicyError` for an invalid `value`."""
        # Convert each entry: the value comes from the network.
        try:
            inputs = {
                str(name): ServedInput(
                    str(entry["key"]), tuple(int(n) for n in entry["shape"]), str(entry["dtype"])
                )
                for name, entry in value["inputs"].items()
            }
            handshake = cls(
                protocol=str(value["protocol"]),
                task=str(value["task"]),
                policy=str(value["policy"]),
                inputs=inputs,
                chunk_size=int(value["chunk_size"]),
                num_action_steps=int(value["num_action_steps"]),
                num_obs_steps=int(value["num_obs_steps"]),
                action_units=str(value["action_units"]),
                action_unit=tuple(float(x) for x in value["action_unit"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BasePolicyError(
                f"{server} sent a handshake that cannot be read: {one_line(repr(error))}"
            ) from error

        # Refuse sizes that no policy can have.
        sizes = handshake.num_action_steps, handshake.chunk_size, handshake.num_obs_steps
        if not 1 <= sizes[0] <= sizes[1] <= _MOST_STEPS or not 1 <= sizes[2] <= _MOST_STEPS:
            raise BasePolicyError(
                f"{server} sent a handshake with invalid num_action_steps, chunk_size, num_obs_steps: {sizes}"
            )
        return handshake

    def same_action_scaling(self, env: VecEnv) -> bool:
        """Whether normalised actions have the same scale on the server and in `env`."""
        mine = env.action_unit.tolist()
        return len(mine) == len(self.action_unit) and np.allclose(mine, self.action_unit, rtol=1e-6, atol=0.0)

    def check(self, env: VecEnv, protocol: str, server: str) -> None:
        """Raise `ConfigError` for another protocol, or an input that `env` does not observe."""
        if self.protocol != protocol:
            raise ConfigError(f"{server} speaks the protocol {self.protocol!r}, not {protocol!r}")

        # Compare name, shape and type of each input.
        spaces = observed(env)
        missing = [
            f"{name} {list(served.shape)} {served.dtype}"
            for name, served in self.inputs.items()
            if name not in spaces
            or shape_of(env, name) != served.shape
            or str(spaces[name].dtype) != served.dtype
        ]
        if missing:
            has = ", ".join(
                f"{name} {list(shape_of(env, name))} {space.dtype}" for name, space in spaces.items()
            )
            raise ConfigError(
                f"{server} serves {self.policy!r} of task {self.task!r}, which needs {', '.join(missing)};"
                f" the env has {has}"
            )
