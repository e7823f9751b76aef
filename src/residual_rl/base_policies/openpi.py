"""The base policy `openpi`: settings and registration.

It queries an openpi server (π0 and similar policies) or `residual-rl serve --protocol openpi`, with flat
observations in msgpack over a websocket. The wire format is that of Physical-Intelligence/openpi
(`packages/openpi-client`, `src/openpi/serving/websocket_policy_server.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.sensitive import Address, Sensitive
from residual_rl.utils.text import parse_pairs
from residual_rl.utils.validation import CheckedCfg, ChunkLength, NonNegativeFloat, Port, PositiveFloat, Rule

_WEBSOCKET_URL = Rule(
    "empty or begin with ws:// or wss://", lambda url: not url or url.startswith(("ws://", "wss://"))
)


@dataclass(frozen=True)
class OpenPiCfg(CheckedCfg):
    """Settings of the `openpi` base policy."""

    url: Annotated[Address, _WEBSOCKET_URL] = ""
    """Address of the server, e.g. wss://robot.example/policy. Empty: ws://HOST:PORT."""
    host: Address = "127.0.0.1"
    """Host of the policy server."""
    port: Annotated[Port, Sensitive("address")] = 8000
    """Port of the policy server."""
    api_token: str | None = None
    """Token of the server. Prefer the environment variable RESIDUAL_RL_TOKEN: settings are saved with the
    run."""
    timeout: PositiveFloat = 15.0
    """Time limit for the replies to all requests of a step, and for connecting [s]."""
    reconnect: NonNegativeFloat = 60.0
    """Time for which the run waits and retries if the server does not answer [s]."""
    observation: tuple[str, ...] = ()
    """Observations to send, as ENV_NAME=SERVER_KEY, e.g. state=observation/state top=observation/image.
    Empty: those requested by a `residual-rl serve` server."""
    prompt: str = ""
    """Language instruction for the policy."""
    action_units: Literal["normalized", "hardware"] | None = None
    """Meaning of the server's actions: the env's own, or absolute joint positions in the robot's units
    (degrees, gripper 0 to 100). None: the value given by a `residual-rl serve` server, else normalized."""
    num_action_steps: ChunkLength | None = None
    """Number of actions executed of each chunk. None: the value given by a `residual-rl serve` server, else
    8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_pairs(self.observation, "observation")


register_base_policy(
    BasePolicySpec(
        id="openpi",
        summary="an openpi server (π0 and similar policies), or residual-rl serve, over websockets",
        make="residual_rl.remote.openpi_policy:make",
        config=f"{__name__}:OpenPiCfg",
        learned=True,
    )
)
