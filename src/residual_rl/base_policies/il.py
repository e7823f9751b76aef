"""The base policy `il`, trained with `residual-rl imitate`: settings and registration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from residual_rl.errors import ConfigError
from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.validation import check_fields


@dataclass(frozen=True)
class ILCfg:
    """Settings of the `il` base policy."""

    checkpoint: Annotated[str, tyro.conf.arg(aliases=["--il-checkpoint"])] = ""
    """Output folder of `residual-rl imitate` or `convert`, or a model file in it."""
    num_action_steps: int | None = None
    """Number of actions executed of each chunk; None: as in training."""
    sampling_steps: int | None = None
    """Denoising steps of diffusion and flow matching; None: as in training."""
    num_samples: int = 1
    """Number of sampled chunks. The first is executed; with two or more, their spread is the uncertainty."""
    seed: int = 0
    """Seed of the noise, which is a function of the seed and the observations."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("num_action_steps", "sampling_steps", "num_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.seed < 1 << 31:
            raise ConfigError(f"seed must be from 0 to {(1 << 31) - 1}, not {self.seed}")


register_base_policy(
    BasePolicySpec(
        id="il",
        summary="a policy trained from demonstrations with `residual-rl imitate`",
        make="residual_rl.imitation.policy:make",
        config=f"{__name__}:ILCfg",
    )
)
