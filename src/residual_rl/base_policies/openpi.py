"""The base policy `openpi`: settings and registration.

It queries an openpi server (π0 and similar policies) or `residual-rl serve --protocol openpi`, with flat
observations in msgpack over a websocket. The wire format is that of Physical-Intelligence/openpi
(`packages/openpi-client`, `src/openpi/serving/websocket_policy_server.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from residual_rl.errors import ConfigError
from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.text import parse_pairs
from residual_rl.utils.validation import check_fields


@dataclass(frozen=True)
class OpenPiCfg:
    """Settings of the `openpi` base policy."""

    url: str = ""
    """Address of the server, e.g. wss://robot.example/policy. Empty: ws://HOST:PORT."""
    host: str = "127.0.0.1"
    """Host of the policy server."""
    port: int = 8000
    """Port of the policy server."""
    api_token: str | None = None
    """Token of the server. Prefer the environment variable RESIDUAL_RL_TOKEN: settings are saved with the
    run."""
    timeout: float = 15.0
    """Time limit for a reply [s]."""
    reconnect: float = 60.0
    """Time for which the run waits and retries if the server does not answer [s]."""
    observation: tuple[str, ...] = ()
    """Observations to send, as ENV_NAME=SERVER_KEY, e.g. state=observation/state top=observation/image.
    Empty: those requested by a `residual-rl serve` server."""
    prompt: str = ""
    """Language instruction for the policy."""
    action_units: Literal["normalized", "hardware"] | None = None
    """Meaning of the server's actions: the env's own, or absolute joint positions in the robot's units
    (degrees, gripper 0 to 100). None: the value given by a `residual-rl serve` server, else normalized."""
    num_action_steps: int | None = None
    """Number of actions executed of each chunk. None: the value given by a `residual-rl serve` server, else
    8."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.url and not self.url.startswith(("ws://", "wss://")):
            raise ConfigError(f"url must begin with ws:// or wss://, not be {self.url!r}")
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"port must be from 1 to 65535, not {self.port}")
        if self.timeout <= 0:
            raise ConfigError(f"timeout must be above 0, not {self.timeout}")
        if self.reconnect < 0:
            raise ConfigError(f"reconnect must be 0 or more, not {self.reconnect}")
        if self.action_units not in (None, "normalized", "hardware"):
            raise ConfigError(f"action_units must be normalized or hardware, not {self.action_units!r}")
        if self.num_action_steps is not None and self.num_action_steps < 1:
            raise ConfigError(f"num_action_steps must be at least 1, not {self.num_action_steps}")
        parse_pairs(self.observation, "observation")


register_base_policy(
    BasePolicySpec(
        id="openpi",
        summary="an openpi server (π0 and similar policies), or residual-rl serve, over websockets",
        make="residual_rl.remote.openpi_policy:make",
        config=f"{__name__}:OpenPiCfg",
    )
)
