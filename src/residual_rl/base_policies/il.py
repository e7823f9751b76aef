"""The base policy `il`, trained with `residual-rl imitate`: settings and registration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.validation import CheckedCfg, ChunkLength, PositiveInt, TorchSeed


@dataclass(frozen=True)
class ILCfg(CheckedCfg):
    """Settings of the `il` base policy."""

    checkpoint: Annotated[str, tyro.conf.arg(aliases=["--il-checkpoint"])] = ""
    """Output folder of `residual-rl imitate` or `convert`, or a model file in it."""
    num_action_steps: ChunkLength | None = None
    """Number of actions executed of each chunk; None: as in training."""
    sampling_steps: PositiveInt | None = None
    """Denoising steps of diffusion (at least 2) and flow matching; None: as in training."""
    num_samples: ChunkLength = 1
    """Number of sampled chunks. The first is executed; with two or more, their spread is the uncertainty."""
    seed: TorchSeed = 0
    """Seed of the noise, which is a function of the seed and the observations."""


register_base_policy(
    BasePolicySpec(
        id="il",
        summary="a policy trained from demonstrations with `residual-rl imitate`",
        make="residual_rl.imitation.policy:make",
        config=f"{__name__}:ILCfg",
        learned=True,
        files="residual_rl.imitation.policy:files",
    )
)
