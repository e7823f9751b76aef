"""The base policy `gr00t`: settings and registration.

It queries an inference server of Isaac-GR00T, N1.5 (flat keys) or N1.6 and N1.7 (nested, batched), or
`residual-rl serve`. The wire formats are those of NVIDIA/Isaac-GR00T: `gr00t/eval/service.py` (N1.5) and
`gr00t/policy/server_client.py` (N1.6, N1.7). The servers' SO-100/101 models predict absolute joint positions,
in the units of the robot's own software.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.sensitive import Address, Sensitive
from residual_rl.utils.text import parse_pairs
from residual_rl.utils.validation import CheckedCfg, ChunkLength, NonNegativeFloat, Port, PositiveFloat


@dataclass(frozen=True)
class Gr00tCfg(CheckedCfg):
    """Settings of the `gr00t` base policy."""

    host: Address = "127.0.0.1"
    """Host of the inference server."""
    port: Annotated[Port, Sensitive("address")] = 5555
    """Port of the inference server."""
    api_token: str | None = None
    """Token of the server. Prefer the environment variable RESIDUAL_RL_TOKEN: settings are saved with the
    run."""
    layout: Literal["n1.5", "n1.6"] = "n1.6"
    """Wire layout: flat keys and one request per env (N1.5), or nested and batched (N1.6, N1.7)."""
    timeout: PositiveFloat = 15.0
    """Time limit for the replies to all requests of a step, and for connecting [s]."""
    reconnect: NonNegativeFloat = 60.0
    """Time for which the run waits and retries if the server does not answer [s]."""
    num_action_steps: ChunkLength | None = None
    """Number of actions executed of each chunk. None: the value given by a `residual-rl serve` server, else
    8."""
    chunk_size: ChunkLength | None = None
    """Number of actions predicted at once. None: the value given by the server, else 16."""
    cameras: tuple[str, ...] = ()
    """Camera images to send, as ENV_NAME=SERVER_KEY, e.g. top=front."""
    extra_state: tuple[str, ...] = ()
    """Further observations to send as state, unchanged, as NAME or ENV_NAME=SERVER_KEY."""
    arm_key: str = "single_arm"
    """The server's key of the arm's joints, which are those before the gripper."""
    gripper_key: str = "gripper"
    """The server's key of the gripper."""
    language_key: str | None = None
    """The server's key of the task description. None: the one given by the server, else
    annotation.human.task_description."""
    task_description: str = ""
    """Language instruction for the policy."""
    units: Literal["hardware", "rad"] = "hardware"
    """Joint units of the server: the robot's own (degrees, gripper 0 to 100), or radians."""
    action_mode: Literal["absolute", "relative"] = "absolute"
    """Whether the server's actions are joint positions, or changes of the arm's current joint positions; the
    gripper is always absolute."""
    invert_gripper: bool = False
    """Whether the server's gripper is 0 when open."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_pairs(self.cameras, "cameras")
        parse_pairs(self.extra_state, "extra_state")


register_base_policy(
    BasePolicySpec(
        id="gr00t",
        summary="a GR00T inference server (N1.5, N1.6, N1.7), or residual-rl serve, over ZeroMQ",
        make="residual_rl.remote.gr00t_policy:make",
        config=f"{__name__}:Gr00tCfg",
        learned=True,
    )
)
