"""A trained model as the base: a run of this project, a Stable-Baselines3 zip, an exported `torch.export`
program, or a state dict of ManiSkill's PPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.validation import CheckedCfg, PositiveInt


@dataclass(frozen=True)
class ModelCfg(CheckedCfg):
    """Settings of the `model` base policy."""

    checkpoint: Annotated[str, tyro.conf.arg(aliases=["--model-path"])] = ""
    """A run folder, a model in it or its policy.safetensors; a Stable-Baselines3 .zip; a .pt2 of
    torch.export; a .pt of ManiSkill's PPO."""
    trust_checkpoint: Annotated[bool, tyro.conf.arg(aliases=["--trust-checkpoint"])] = False
    """Read a .zip, .pt2 or .pt, also as the base of a run: such files can run code of whoever made them."""
    input_keys: tuple[str, ...] = ()
    """Inputs of a .zip, .pt2 or .pt, joined in this order. Empty: `state`; for a .pt with image input the
    only camera and, if it needs vectors, `proprioception`. A .zip with a dict of observations names its
    inputs itself."""
    num_action_steps: PositiveInt | None = None
    """Actions of a .pt2's chunk that are executed. None: all."""


register_base_policy(
    BasePolicySpec(
        id="model",
        summary=(
            "a trained model: a run of this project, a Stable-Baselines3 zip, a torch.export program, "
            "ManiSkill's PPO"
        ),
        make="residual_rl.base_policies.model_policy:make",
        config=f"{__name__}:ModelCfg",
    )
)
