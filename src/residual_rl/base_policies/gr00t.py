"""A policy behind a GR00T inference server: Isaac-GR00T N1.5 (flat keys) or N1.6 and N1.7 (nested, batched), or `residual-rl serve`.

The wire formats are those of NVIDIA/Isaac-GR00T: `gr00t/eval/service.py` (N1.5) and `gr00t/policy/server_client.py` (N1.6, N1.7).
The servers' SO-100/101 models give absolute joint positions, in the units of the robot's own software.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.text import parse_pairs
from residual_rl.utils.validation import CheckedCfg, NonNegativeFloat, Port, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class Gr00tCfg(CheckedCfg):
    """Settings of the `gr00t` base policy."""

    host: str = "127.0.0.1"
    """Where the inference server runs."""
    port: Port = 5555
    """Its port."""
    api_token: str | None = None
    """Its token, if it wants one. Better in the environment, as RESIDUAL_RL_TOKEN: settings are saved with a run."""
    layout: Literal["n1.5", "n1.6"] = "n1.6"
    """Wire layout: flat keys and a request for each world (N1.5), or nested and batched (N1.6, N1.7)."""
    timeout: PositiveFloat = 15.0
    """How long the server may take for a reply [s]."""
    reconnect: NonNegativeFloat = 60.0
    """How long a server that does not answer is asked again, while the run waits [s]."""
    num_action_steps: PositiveInt | None = None
    """Actions that are executed of each chunk. None: as a server of ours says, else 8."""
    chunk_size: PositiveInt | None = None
    """Actions that the server predicts. None: as it says, else 16."""
    cameras: tuple[str, ...] = ()
    """Camera images to send, as ENV_NAME=SERVER_KEY, e.g. top=front."""
    extra_state: tuple[str, ...] = ()
    """More observations to send as state, unchanged, as NAME or ENV_NAME=SERVER_KEY."""
    arm_key: str = "single_arm"
    """What the server calls the arm's joints: those before the gripper."""
    gripper_key: str = "gripper"
    """What it calls the gripper."""
    language_key: str | None = None
    """What it calls the task's description. None: as it says, else annotation.human.task_description."""
    task_description: str = ""
    """What the robot is told to do."""
    units: Literal["hardware", "rad"] = "hardware"
    """What the server measures joints in: the robot's own units (degrees, gripper 0 to 100), or radians."""
    action_mode: Literal["absolute", "relative"] = "absolute"
    """Whether its actions are joint positions, or, for the arm, changes from the present ones; the gripper is always absolute."""
    invert_gripper: bool = False
    """Whether its gripper is 0 when open."""

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
    )
)
