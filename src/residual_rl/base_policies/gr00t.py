"""A policy behind a GR00T inference server: Isaac-GR00T N1.5 (flat keys) or N1.6 and N1.7 (nested, batched),
or `residual-rl serve`.

The wire formats are those of NVIDIA/Isaac-GR00T: `gr00t/eval/service.py` (N1.5) and
`gr00t/policy/server_client.py` (N1.6, N1.7). The servers' SO-100/101 models give absolute joint positions, in
the units of the robot's own software.
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
    """Host of the inference server."""
    port: Port = 5555
    """Port of the server."""
    api_token: str | None = None
    """Token of the server, if it requires one. Prefer the environment variable RESIDUAL_RL_TOKEN: settings
    are saved with a run."""
    layout: Literal["n1.5", "n1.6"] = "n1.6"
    """Wire layout: flat keys and one request for each env (N1.5), or nested and batched (N1.6, N1.7)."""
    timeout: PositiveFloat = 15.0
    """Time limit for a reply [s]."""
    reconnect: NonNegativeFloat = 60.0
    """How long requests to an unavailable server are repeated, while the run waits [s]."""
    num_action_steps: PositiveInt | None = None
    """Actions of each chunk that are executed. None: as a `residual-rl serve` server declares, otherwise
    8."""
    chunk_size: PositiveInt | None = None
    """Actions that the server predicts. None: as it declares, otherwise 16."""
    cameras: tuple[str, ...] = ()
    """Camera images to send, as ENV_NAME=SERVER_KEY, e.g. top=front."""
    extra_state: tuple[str, ...] = ()
    """Further observations to send as state, unchanged, as NAME or ENV_NAME=SERVER_KEY."""
    arm_key: str = "single_arm"
    """The server's key for the arm's joints, without the gripper."""
    gripper_key: str = "gripper"
    """The server's key for the gripper."""
    language_key: str | None = None
    """The server's key for the instruction. None: as it declares, otherwise
    annotation.human.task_description."""
    task_description: str = ""
    """Instruction for the policy."""
    units: Literal["hardware", "rad"] = "hardware"
    """Units of the server's joint positions: the robot's own (degrees, gripper 0 to 100), or radians."""
    action_mode: Literal["absolute", "relative"] = "absolute"
    """Whether the arm's actions are joint positions or changes from the present ones; the gripper is always
    absolute."""
    invert_gripper: bool = False
    """Whether the server's gripper value is 0 when open."""

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
