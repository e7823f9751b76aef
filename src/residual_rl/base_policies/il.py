"""A policy that `residual-rl imitate` trained: behaviour cloning, diffusion or flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.validation import CheckedCfg, PositiveInt, TorchSeed

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class ILCfg(CheckedCfg):
    """Settings of the `il` base policy."""

    checkpoint: Annotated[str, tyro.conf.arg(aliases=["--il-checkpoint"])] = ""
    """Folder or model file that `residual-rl imitate` or `convert` wrote."""
    num_action_steps: PositiveInt | None = None
    """Actions of a chunk that are executed before the next prediction. None: as trained."""
    sampling_steps: PositiveInt | None = None
    """Denoising steps of diffusion and flow. None: as trained."""
    num_samples: PositiveInt = 1
    """Chunks sampled at once: the first is executed, and the spread of two or more is the policy's
    uncertainty."""
    seed: TorchSeed = 0
    """Seed of the noise, which depends only on it and on the observations."""


register_base_policy(
    BasePolicySpec(
        id="il",
        summary="a policy that `residual-rl imitate` trained from demonstrations",
        make="residual_rl.imitation.policy:make",
        config=f"{__name__}:ILCfg",
    )
)
