"""A policy behind an openpi server (π0 and its kin), or `residual-rl serve --protocol openpi`: a websocket, msgpack, a flat observation.

The wire format is that of Physical-Intelligence/openpi (`packages/openpi-client`, `src/openpi/serving/websocket_policy_server.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.text import parse_pairs
from residual_rl.utils.validation import CheckedCfg, NonNegativeFloat, Port, PositiveFloat, PositiveInt, Rule

_WEBSOCKET_URL = Rule("empty or begin with ws:// or wss://", lambda url: not url or url.startswith(("ws://", "wss://")))


@dataclass(frozen=True)
class OpenPiCfg(CheckedCfg):
    """Settings of the `openpi` base policy."""

    url: Annotated[str, _WEBSOCKET_URL] = ""
    """Address of the server, e.g. wss://robot.example/policy. Empty: ws://HOST:PORT."""
    host: str = "127.0.0.1"
    """Where the policy server runs."""
    port: Port = 8000
    """Its port."""
    api_token: str | None = None
    """Its token, if it wants one. Better in the environment, as RESIDUAL_RL_TOKEN: settings are saved with a run."""
    timeout: PositiveFloat = 15.0
    """How long the server may take for a reply [s]."""
    reconnect: NonNegativeFloat = 60.0
    """How long a server that does not answer is asked again, while the run waits [s]."""
    observation: tuple[str, ...] = ()
    """What is sent, as ENV_NAME=SERVER_KEY, e.g. state=observation/state top=observation/image. Empty: what a server of ours asks for."""
    prompt: str = ""
    """What the robot is told to do."""
    action_units: Literal["normalized", "hardware"] | None = None
    """What the server's actions are: the env's own, or absolute joint positions in the robot's units (degrees, gripper 0 to 100).
    None: as a server of ours says, else normalized."""
    num_action_steps: PositiveInt | None = None
    """Actions that are executed of each chunk. None: as a server of ours says, else 8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_pairs(self.observation, "observation")


register_base_policy(
    BasePolicySpec(
        id="openpi",
        summary="an openpi server (π0 and its kin), or residual-rl serve, over websockets",
        make="residual_rl.remote.openpi_policy:make",
        config=f"{__name__}:OpenPiCfg",
    )
)
