"""Settings that the off-policy learners share, apart from their code so that the command line's help needs no
torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from residual_rl.errors import ConfigError
from residual_rl.learners.ppo.config import Activation, BootstrapAtDone
from residual_rl.utils.validation import (
    CheckedCfg,
    Correlation,
    Names,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    UnitInterval,
)

CriticInput = Literal["sum", "res", "concat"]
ActorInput = Literal["obs", "obs_base_action"]
WarmupNoise = Literal["correlated", "uniform", "none"]
_PUBLISHED_INIT_STD = math.exp(-9.0)
"""Initial standard deviation of Policy Decorator."""


@dataclass(frozen=True)
class OffPolicyCfg(CheckedCfg):
    """Settings of an off-policy learner. Steps are decisions of the learner, over all envs."""

    # --- data ---
    num_steps: PositiveInt = 1
    """Steps per env between two updates."""
    buffer_size: PositiveInt = 1_000_000
    """Capacity of the replay buffer in transitions; the oldest are overwritten."""
    batch_size: PositiveInt = 256
    """Transitions in a gradient step."""
    utd: PositiveFloat = 1.0
    """Update-to-data ratio: gradient steps of the critics per step."""
    demos: str | None = None
    """File of demonstrations to learn from as well, written by `residual-rl demos collect`."""
    demo_share: Correlation = 0.0
    """Share of each batch that comes from demonstrations; 0.5 is symmetric sampling (RLPD, Ball et al.,
    2023)."""

    # --- returns ---
    gamma: UnitInterval = 0.99
    """Discount per step."""
    n_step: PositiveInt = 5
    """Rewards in an n-step return, before the critics' estimate."""
    bootstrap_at_done: BootstrapAtDone = "truncated"
    """When to bootstrap from the value of an episode's final observation: if it was truncated, always, or
    never."""
    reward_scale: PositiveFloat = 0.2
    """Factor on rewards."""
    reward_shift: float = 0.0
    """Added to each reward before it is scaled."""
    normalize_targets: bool = False
    """Critics learn targets in units of their running mean and standard deviation."""

    # --- exploration ---
    learning_starts: NonNegativeInt = 500
    """Steps after which the critics begin to learn."""
    actor_starts: NonNegativeInt = 2_000
    """Steps after which the actor begins to learn."""
    warmup_steps: NonNegativeInt = 2_000
    """Steps in which the residual is only noise around the base policy."""
    warmup_noise: WarmupNoise = "correlated"
    """Warm-up noise: Gaussian and correlated in time, uniform in each step, or none (base policy only)."""
    warmup_std: PositiveFloat = 0.5
    """Standard deviation of the correlated warm-up noise, in units of the residual's bound."""
    noise_correlation: Correlation = 0.9
    """Correlation of the exploration noise from one policy step to the next; 0 is white noise."""
    prog_explore: NonNegativeInt = 0
    """Progressive exploration: the residual acts with a probability that rises from 0 to 1 over so many
    steps, drawn for each env and step. 0: it always acts."""

    # --- learning ---
    critic_learning_rate: PositiveFloat = 5e-4
    """Step size of Adam for the critics."""
    actor_learning_rate: PositiveFloat = 3e-4
    """Step size of Adam for the actor."""
    actor_every: PositiveInt = 2
    """Gradient steps of the critics for each of the actor."""
    actor_penalty: NonNegativeFloat = 0.0
    """Weight of the squared residual action in the actor's loss, in units of scaled rewards; without a
    preference of the critics, the residual stays at zero."""
    actor_ema_power: NonNegativeFloat = 0.75
    """The deployed actor is an average of its weights with decay 1 − (1 + t)^−power after gradient step t; 0
    deploys the newest weights."""
    tau: Share = 0.005
    """Step of the target critics towards the critics, in each gradient step."""
    max_grad_norm: PositiveFloat = 1.0
    """Bound of the norm of the critics' gradient, and of the actor's."""

    # --- networks ---
    num_critics: PositiveInt = 4
    """Critics in the ensemble."""
    num_target_critics: PositiveInt = 2
    """Critics, drawn at random for each gradient step, whose minimum is the target."""
    actor_value: Literal["min", "mean"] = "mean"
    """What the actor maximises: the minimum or the mean of the critics' values."""
    hidden_sizes: tuple[PositiveInt, ...] = (128, 128)
    """Width of each hidden layer, of actor and critics alike."""
    activation: Activation = "relu"
    """Activation between layers."""
    critic_layer_norm: bool = True
    """Normalise the hidden layers of the critics."""
    actor_layer_norm: bool = True
    """Normalise the hidden layers of the actor."""
    output_init: NonNegativeFloat = 0.0
    """Scale of the initial weights of the last layers; above 0, an untrained residual is not exactly zero."""
    critic_input: CriticInput = "sum"
    """Action input of the critics: `sum` (the executed action), `res` (the residual action), or `concat`
    (base and residual action). The last two need a constant residual scale."""
    critic_base_action: bool = True
    """Give the base action to the critics as well."""
    actor_input: ActorInput = "obs_base_action"
    """Input of the actor: the observation alone, or with the base action."""
    obs_keys: Names = ("state",)
    """Named observations of actor and critics, joined in this order."""
    normalize_obs: bool = True
    """Normalise observations by running statistics, clipped at 10 standard deviations."""

    # --- speed ----------------------------------------------------------------------------------------
    compile: bool = False
    """Compile the losses with torch.compile; meant for a GPU."""
    cudagraphs: bool = False
    """Record gradient steps as CUDA graphs; without a GPU they run eagerly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_target_critics > self.num_critics:
            raise ConfigError(
                f"num_target_critics must be at most num_critics ({self.num_critics}), not "
                f"{self.num_target_critics}"
            )
        if self.demos is not None and self.demo_batch_size == 0:
            raise ConfigError(
                f"demos has no effect: demo_share {self.demo_share} of a batch of {self.batch_size} is "
                "nothing; set --demo-share 0.25, or "
                "0.5 for symmetric sampling"
            )
        if "base_action" in self.obs_keys:
            raise ConfigError(
                "obs_keys must not name base_action here: actor_input and critic_base_action decide who "
                "sees it"
            )

    @property
    def demo_batch_size(self) -> int:
        """Number of demonstrated transitions in a batch."""
        return round(self.demo_share * self.batch_size)


@dataclass(frozen=True)
class SACCfg(OffPolicyCfg):
    """Settings of SAC."""

    init_std: PositiveFloat = 0.4
    """Standard deviation of the Gaussian at the start, before it is squashed into the residual's bound."""
    log_std_range: tuple[float, float] = (-5.0, 2.0)
    """Bounds of the logarithm of that standard deviation, which depends on the observation."""
    temperature: PositiveFloat = 0.01
    """Weight of the entropy; its initial value where it is tuned."""
    tune_temperature: bool = True
    """Tune the temperature so that the entropy is `target_entropy`."""
    temperature_learning_rate: PositiveFloat = 3e-4
    """Step size of Adam for the logarithm of the temperature."""
    target_entropy: float | None = None
    """Target entropy of the residual action. None: minus the number of its elements."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.log_std_range
        if not low < math.log(self.init_std) < high:
            raise ConfigError(
                f"init_std must be within exp({low:g}) and exp({high:g}), the log_std_range, not "
                f"{self.init_std}"
            )


@dataclass(frozen=True)
class PolicyDecoratorCfg(SACCfg):
    """Settings of Policy Decorator as it was published: Yuan et al., ICLR 2025, arXiv 2412.13630, and its
    released scripts.

    With it `train` uses 16 envs, so that `num_steps` means training every 64 steps; decisions of whole
    executed chunks; the residual scale of peg insertion, 0.1; and no penalty. It is meant for sparse rewards
    of 1 (each decision costs 1), which are settings of the task (`so101-paper`: `--reward-mode sparse
    --reward-success 1`), and for base policies that execute chunks of 4. Deviations: the executed action, and
    so the critics' input, is clipped; critics are clipped together, and their loss is half of the published
    one; hidden layers begin orthogonal, not as torch has them.
    """

    num_steps: PositiveInt = 4
    batch_size: PositiveInt = 1024
    utd: PositiveFloat = 0.25
    gamma: UnitInterval = 0.97
    n_step: PositiveInt = 1
    reward_scale: PositiveFloat = 1.0
    reward_shift: float = -1.0
    learning_starts: NonNegativeInt = 8_000
    actor_starts: NonNegativeInt = 8_000
    warmup_steps: NonNegativeInt = 8_000
    warmup_noise: WarmupNoise = "uniform"
    noise_correlation: Correlation = 0.0
    prog_explore: NonNegativeInt = 30_000
    critic_learning_rate: PositiveFloat = 1e-4
    actor_learning_rate: PositiveFloat = 1e-4
    actor_every: PositiveInt = 1
    actor_ema_power: NonNegativeFloat = 0.0
    tau: Share = 0.01
    max_grad_norm: PositiveFloat = 50.0
    num_critics: PositiveInt = 2
    actor_value: Literal["min", "mean"] = "min"
    hidden_sizes: tuple[PositiveInt, ...] = (256, 256, 256)
    critic_layer_norm: bool = False
    actor_layer_norm: bool = False
    output_init: NonNegativeFloat = 0.01
    critic_base_action: bool = False
    actor_input: ActorInput = "obs"
    normalize_obs: bool = False
    init_std: PositiveFloat = _PUBLISHED_INIT_STD
    log_std_range: tuple[float, float] = (-20.0, 2.0)
    temperature: PositiveFloat = 1.0
    temperature_learning_rate: PositiveFloat = 1e-4


@dataclass(frozen=True)
class TD3Cfg(OffPolicyCfg):
    """Settings of TD3."""

    exploration_std: NonNegativeFloat = 0.3
    """Standard deviation of the exploration noise, in units of the residual's bound."""
    target_noise: NonNegativeFloat = 0.2
    """Standard deviation of the noise on the target's actions, which smooths the critics."""
    target_noise_clip: NonNegativeFloat = 0.5
    """Bound of that noise."""
