"""The base policy `model`: a trained model of one of several kinds.

Supported are a run of this project, a Stable-Baselines3 zip, a `torch.export` program, and a state dict of
ManiSkill's PPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.artifacts import ModelPath
from residual_rl.utils.sensitive import Trust
from residual_rl.utils.validation import CheckedCfg, ChunkLength


@dataclass(frozen=True)
class ModelCfg(CheckedCfg):
    """Settings of the `model` base policy."""

    checkpoint: Annotated[ModelPath, tyro.conf.arg(aliases=["--model-path"])] = ""
    """A run folder, a model in it, or its policy.safetensors; a Stable-Baselines3 .zip; a torch.export .pt2;
    or a .pt of ManiSkill's PPO. On the command line also a W&B artifact that holds one:
    wandb:ENTITY/PROJECT/NAME:VERSION."""
    trust_checkpoint: Annotated[Trust, tyro.conf.arg(aliases=["--trust-checkpoint"])] = False
    """Allow reading a .zip, .pt2 or .pt, also as the base of a run; it can run arbitrary code."""
    input_keys: tuple[str, ...] = ()
    """Observations for a .zip, .pt2 or .pt, joined in this order. Default: `state`; for a .pt that uses
    images, the only camera and, if it needs them, the joint values `proprioception`. A .zip with dict
    observations names its own."""
    num_action_steps: ChunkLength | None = None
    """Number of actions executed of each chunk of a .pt2; None: all."""
    vec_normalize: Annotated[str, tyro.conf.arg(aliases=["--vec-normalize"])] = ""
    """File of `VecNormalize.save` with the statistics of the observations that a .zip was trained on, often
    called vecnormalize.pkl; it needs --trust-checkpoint too."""


register_base_policy(
    BasePolicySpec(
        id="model",
        summary="a trained model: a run, a Stable-Baselines3 zip, a torch.export program, or ManiSkill's PPO",
        make="residual_rl.base_policies.model_policy:make",
        config=f"{__name__}:ModelCfg",
        learned=True,
    )
)
