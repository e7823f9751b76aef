"""What a server of this project tells its clients about the policy that it serves."""

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
"""Under this name a server of ours tells its handshake."""


_MOST_STEPS = 1000


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
    action_unit: tuple[float, ...]
    """What a normalised action of 1 means."""

    def to_wire(self) -> dict[str, Any]:
        """Plain values, for a message."""
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, value: Any, server: str) -> Handshake:
        """What `to_wire` gave. Raises `BasePolicyError` where it is something else."""
        try:
            inputs = {
                str(name): ServedInput(
                    str(entry["key"]), tuple(int(n) for n in entry["shape"]), str(entry["dtype"])
                )
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
                action_unit=tuple(float(x) for x in value["action_unit"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BasePolicyError(
                f"{server} sent a handshake that cannot be read: {one_line(repr(error))}"
            ) from error
        sizes = told.num_action_steps, told.chunk_size, told.num_obs_steps
        if not 1 <= sizes[0] <= sizes[1] <= _MOST_STEPS or not 1 <= sizes[2] <= _MOST_STEPS:
            raise BasePolicyError(
                f"{server} sent a handshake with the impossible num_action_steps, chunk_size, num_obs_steps {sizes}"
            )
        return told

    def same_action_scaling(self, env: VecEnv) -> bool:
        """Whether normalised actions mean the same to both."""
        mine = env.action_unit.tolist()
        return len(mine) == len(self.action_unit) and np.allclose(mine, self.action_unit, rtol=1e-6, atol=0.0)

    def check(self, env: VecEnv, protocol: str, server: str) -> None:
        """Raise `ConfigError` where the server speaks another protocol, or needs what `env` does not observe."""
        if self.protocol != protocol:
            raise ConfigError(f"{server} speaks the protocol {self.protocol!r}, not {protocol!r}")
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
                f"{server} serves {self.policy!r} of task {self.task!r}, which needs {', '.join(missing)}; the env has {has}"
            )
