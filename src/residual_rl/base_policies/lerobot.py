"""A policy of LeRobot that predicts chunks of joint positions: ACT, Diffusion, and others by the same way.

LeRobot keeps one queue of actions, and one history, for the whole batch, and cannot reset one world of it. So the executor keeps both,
and the policy is only ever asked for chunks: `predict_action_chunk`, or `diffusion.generate_actions` of one that plans from a history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.text import parse_pairs
from residual_rl.utils.validation import CheckedCfg, PositiveInt, TorchSeed

JointUnits = Literal["hardware", "range", "rad"]
"""Units of joint positions: those of the robot (degrees; SO-101: gripper 0 to 100), LeRobot's -100 to 100 over each arm joint's range
(robots configured with `use_degrees=false`), or [rad]."""


@dataclass(frozen=True)
class LeRobotCfg(CheckedCfg):
    """Settings of the `lerobot` base policy."""

    checkpoint: Annotated[str, tyro.conf.arg(aliases=["--il-checkpoint"])] = ""
    """Folder of a LeRobot policy, of a training that saved one, or owner/name on the Hugging Face hub, from where it is downloaded."""
    revision: str | None = None
    """Revision of the hub's repository."""
    trust_checkpoint: Annotated[bool, tyro.conf.arg(aliases=["--trust-checkpoint"])] = False
    """Allow its processors to import classes by name: they can run code of whoever made them."""
    num_action_steps: PositiveInt | None = None
    """Actions of a chunk that are executed before it plans anew; none means as trained."""
    inference_steps: PositiveInt | None = None
    """Diffusion: steps from noise to actions; none means as trained."""
    seed: TorchSeed = 0
    """Seed of the noise; the noise depends on it and on the observations alone."""
    device: str | None = None
    """Device of the policy; none means the env's."""
    precision: Literal["float64", "native"] = "float64"
    """On a CPU, float64 makes a world's actions the same whichever others are asked with it; native is quicker, for large models."""
    cameras: tuple[str, ...] = ()
    """Cameras that the policy calls otherwise, as ENV_NAME=POLICY_NAME, e.g. top=front."""
    units: JointUnits = "hardware"
    """What it measures joints in: as the robot reports them (degrees, gripper 0 to 100), range (arm -100 to 100), or rad."""
    task_description: str = ""
    """What the robot is told to do, where the policy reads that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_pairs(self.cameras, "cameras")


# --- what it sees -------------------------------------------------------------------------------------------------------


# --- how it is asked ----------------------------------------------------------------------------------------------------


register_base_policy(
    BasePolicySpec(
        id="lerobot",
        summary="a policy of LeRobot (ACT, Diffusion, …): a folder or a name on the Hugging Face hub",
        make="residual_rl.lerobot.policy:make",
        config=f"{__name__}:LeRobotCfg",
    )
)
