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
    """What `residual-rl imitate` or `convert` wrote: its folder, or a model file of it."""
    num_action_steps: PositiveInt | None = None
    """Actions of a chunk that are executed before it plans anew; none means as trained."""
    sampling_steps: PositiveInt | None = None
    """Steps from noise to actions, for diffusion and flow; none means as trained."""
    num_samples: PositiveInt = 1
    """Chunks drawn at once: the first is executed, and from two on their spread tells how unsure the policy is."""
    seed: TorchSeed = 0
    """Seed of the noise; the noise depends on it and on the observations alone."""


register_base_policy(
    BasePolicySpec(
        id="il",
        summary="a policy that `residual-rl imitate` trained from demonstrations",
        make="residual_rl.imitation.policy:make",
        config=f"{__name__}:ILCfg",
    )
)
