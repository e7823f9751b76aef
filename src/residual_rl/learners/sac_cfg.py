"""Settings of SAC, and of the preset `policy-decorator`, apart from its code so that the command line's help needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from residual_rl.errors import ConfigError
from residual_rl.learners.off_policy_cfg import ActorInput, OffPolicyCfg, WarmupNoise, require
from residual_rl.registry import LearnerSpec, register_learner

QUICK = {"learning_starts": 256, "warmup_steps": 512, "actor_starts": 512, "num_steps": 4, "utd": 0.5}
"""Settings that fit `train --quick`."""
LOGGING = {"log_freq": 500}
"""There are few steps between two updates: a row of figures for each would be slow, and long."""


@dataclass(frozen=True)
class SACCfg(OffPolicyCfg):
    """Settings of SAC."""

    init_std: float = 0.4
    """Standard deviation of the Gaussian at the start, before it is squashed into the residual's bound."""
    log_std_range: tuple[float, float] = (-5.0, 2.0)
    """Bounds of the logarithm of that standard deviation, which depends on the observation."""
    temperature: float = 0.01
    """Weight of the entropy; where it is tuned, at the start."""
    tune_temperature: bool = True
    """Tune the temperature so that the entropy is `target_entropy`."""
    temperature_learning_rate: float = 3e-4
    """Step size of Adam for the logarithm of the temperature."""
    target_entropy: float | None = None
    """Entropy of the residual action that the temperature is tuned to; none is minus the number of its elements."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("init_std", "temperature", "temperature_learning_rate"):
            require(self, name, getattr(self, name) > 0.0, "above 0")
        low, high = self.log_std_range
        if not low < math.log(self.init_std) < high:
            raise ConfigError(f"init_std must be within exp({low:g}) and exp({high:g}), as log_std_range says, not {self.init_std}")


@dataclass(frozen=True)
class PolicyDecoratorCfg(SACCfg):
    """Settings of Policy Decorator as it was published: Yuan et al., ICLR 2025, arXiv 2412.13630, and its released scripts.

    With it `train` has 16 worlds, where `num_steps` is training every 64 steps; decisions of whole executed chunks; the residual scale of
    peg insertion, 0.1; and no penalty. It is meant for sparse rewards of 1 (each decision costs 1), which the task has to be told
    (`so101-paper`: `--reward-mode sparse --reward-success 1`), and for base policies that execute chunks of 4. Deviations: the executed
    action, and so the critics' input, is clipped; critics are clipped together, and their loss is half of the published one; hidden
    layers begin orthogonal, not as torch has them.
    """

    num_steps: int = 4
    batch_size: int = 1024
    utd: float = 0.25
    gamma: float = 0.97
    n_step: int = 1
    reward_scale: float = 1.0
    reward_shift: float = -1.0
    learning_starts: int = 8_000
    actor_starts: int = 8_000
    warmup_steps: int = 8_000
    warmup_noise: WarmupNoise = "uniform"
    noise_correlation: float = 0.0
    prog_explore: int = 30_000
    critic_learning_rate: float = 1e-4
    actor_learning_rate: float = 1e-4
    actor_every: int = 1
    actor_ema_power: float = 0.0
    tau: float = 0.01
    max_grad_norm: float = 50.0
    num_critics: int = 2
    actor_value: Literal["min", "mean"] = "min"
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    critic_layer_norm: bool = False
    actor_layer_norm: bool = False
    output_init: float = 0.01
    critic_base_action: bool = False
    actor_input: ActorInput = "obs"
    normalize_obs: bool = False
    init_std: float = math.exp(-9.0)
    log_std_range: tuple[float, float] = (-20.0, 2.0)
    temperature: float = 1.0
    temperature_learning_rate: float = 1e-4


register_learner(
    LearnerSpec(
        id="sac",
        summary="soft actor-critic with a replay buffer: few samples, sparse rewards",
        config=f"{__name__}:SACCfg",
        make="residual_rl.learners.sac:SAC",
        make_policy="residual_rl.learners.sac:make_policy",
        quick_overrides=QUICK,
        train_overrides=LOGGING,
    )
)
register_learner(
    LearnerSpec(
        id="policy-decorator",
        summary="SAC with the settings of Policy Decorator (Yuan et al., 2025)",
        config=f"{__name__}:PolicyDecoratorCfg",
        make="residual_rl.learners.sac:SAC",
        make_policy="residual_rl.learners.sac:make_policy",
        quick_overrides=QUICK | {"batch_size": 256},
        train_overrides=LOGGING | {"num_envs": 16, "chunk": "whole", "residual_scale": 0.1, "residual_penalty": 0.0},
    )
)
