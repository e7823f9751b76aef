"""The base policy `lerobot`: settings and registration.

It is a LeRobot policy that predicts chunks of joint positions: ACT, Diffusion, and others with the same
interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.sensitive import HubName, Trust
from residual_rl.utils.text import parse_pairs
from residual_rl.utils.validation import CheckedCfg, ChunkLength, TorchSeed

JointUnits = Literal["hardware", "range", "rad"]
"""Units of joint positions: `hardware`, the robot's own (degrees; SO-101: gripper 0 to 100); `range`,
LeRobot's -100 to 100 over each arm joint's range (robots configured with `use_degrees=false`); or `rad`."""


@dataclass(frozen=True)
class LeRobotCfg(CheckedCfg):
    """Settings of the `lerobot` base policy."""

    checkpoint: Annotated[HubName, tyro.conf.arg(aliases=["--il-checkpoint"])] = ""
    """Folder of a LeRobot policy or of its training run, or OWNER/NAME on the Hugging Face hub, which is
    downloaded."""
    revision: str | None = None
    """Revision of the repository on the hub."""
    trust_checkpoint: Annotated[Trust, tyro.conf.arg(aliases=["--trust-checkpoint"])] = False
    """Allow types of policies and processors that load further models or import classes by name, which can
    run arbitrary code."""
    num_action_steps: ChunkLength | None = None
    """Number of actions executed of each chunk; None: as in training."""
    inference_steps: ChunkLength | None = None
    """Denoising steps of Diffusion policies, at least 2; None: as in training."""
    seed: TorchSeed = 0
    """Seed of the noise, which is a function of the seed and the observations."""
    device: str | None = None
    """Device of the policy; None: that of the env."""
    precision: Literal["float64", "native"] = "float64"
    """Precision on a CPU. With float64, an env's actions do not depend on the other envs in the batch; native
    is faster, for large models."""
    cameras: tuple[str, ...] = ()
    """Cameras with another name in the policy, as ENV_NAME=POLICY_NAME, e.g. top=front."""
    units: JointUnits = "hardware"
    """Joint units of the policy: hardware (degrees, gripper 0 to 100), range (arm -100 to 100), or rad."""
    task_description: str = ""
    """Language instruction, for policies that read one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_pairs(self.cameras, "cameras")


register_base_policy(
    BasePolicySpec(
        id="lerobot",
        summary="a LeRobot policy (ACT, Diffusion, …) from a folder or the Hugging Face hub",
        make="residual_rl.lerobot.policy:make",
        config=f"{__name__}:LeRobotCfg",
        learned=True,
        files="residual_rl.lerobot.policy:files",
    )
)
