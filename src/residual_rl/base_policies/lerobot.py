"""A policy of LeRobot that predicts chunks of joint positions: ACT, Diffusion, and others by the same way.

LeRobot keeps one queue of actions, and one history, for the whole batch, and cannot reset one world of it. So
the executor keeps both, and the policy is only ever asked for chunks: `predict_action_chunk`, or
`diffusion.generate_actions` of one that plans from a history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.text import parse_pairs
from residual_rl.utils.validation import CheckedCfg, PositiveInt, TorchSeed

JointUnits = Literal["hardware", "range", "rad"]
"""Units of joint positions: those of the robot (degrees; SO-101: gripper 0 to 100), LeRobot's -100 to 100
over each arm joint's range (robots configured with `use_degrees=false`), or [rad]."""


@dataclass(frozen=True)
class LeRobotCfg(CheckedCfg):
    """Settings of the `lerobot` base policy."""

    checkpoint: Annotated[str, tyro.conf.arg(aliases=["--il-checkpoint"])] = ""
    """Folder of a LeRobot policy or of a training that saved one, or owner/name on the Hugging Face hub, from
    which it is downloaded."""
    revision: str | None = None
    """Revision of the repository on the hub."""
    trust_checkpoint: Annotated[bool, tyro.conf.arg(aliases=["--trust-checkpoint"])] = False
    """Allow its processors to import classes by name, which can run code of whoever made them."""
    num_action_steps: PositiveInt | None = None
    """Actions of a chunk that are executed before the next prediction. None: as trained."""
    inference_steps: PositiveInt | None = None
    """Diffusion: denoising steps. None: as trained."""
    seed: TorchSeed = 0
    """Seed of the noise, which depends only on it and on the observations."""
    device: str | None = None
    """Device of the policy. None: that of the env."""
    precision: Literal["float64", "native"] = "float64"
    """On a CPU, float64 makes the actions for an env independent of the other envs in the batch; native is
    faster, for large models."""
    cameras: tuple[str, ...] = ()
    """Cameras with other names in the policy, as ENV_NAME=POLICY_NAME, e.g. top=front."""
    units: JointUnits = "hardware"
    """Units of its joint positions: hardware (as the robot reports them: degrees, gripper 0 to 100), range
    (arm -100 to 100), or rad."""
    task_description: str = ""
    """Instruction for the policy, if it takes one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_pairs(self.cameras, "cameras")


register_base_policy(
    BasePolicySpec(
        id="lerobot",
        summary="a policy of LeRobot (ACT, Diffusion, …): a folder or a name on the Hugging Face hub",
        make="residual_rl.lerobot.policy:make",
        config=f"{__name__}:LeRobotCfg",
    )
)
