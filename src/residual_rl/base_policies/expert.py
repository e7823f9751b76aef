"""The base policy `expert`: settings and registration."""

from __future__ import annotations

from dataclasses import dataclass

from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.validation import CheckedCfg, NonNegativeFloat, TorchSeed


@dataclass(frozen=True)
class ExpertCfg(CheckedCfg):
    """Settings of the `expert` base policy: action = gain · expert action + bias + noise, in units of the
    action range, before clipping."""

    gain: NonNegativeFloat = 1.0
    """Factor of the expert's action."""
    bias: tuple[float, ...] = ()
    """Constant added to the action: one value for each of its entries, or one for all. Empty: none."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of normal noise added to each entry of the action."""
    seed: TorchSeed = 0
    """Seed of the noise, which is a function of the seed and the observations."""


register_base_policy(
    BasePolicySpec(
        id="expert",
        summary="the scripted policy of an env's adapter, with a gain, a bias and noise (MetaWorld, Fetch)",
        make="residual_rl.base_policies.expert_policy:make",
        config=f"{__name__}:ExpertCfg",
        # what it does wrong is as unknown as what a trained policy does, so a residual learns as over one
        learned=True,
    )
)
