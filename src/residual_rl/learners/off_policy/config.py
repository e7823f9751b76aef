"""Settings of the off-policy learners. This module does not import torch, so that the command line's help
stays fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from residual_rl.errors import ConfigError
from residual_rl.learners.ppo.config import Activation, BootstrapAtDone
from residual_rl.utils.validation import (
    BatchSize,
    CheckedCfg,
    Correlation,
    LayerSizes,
    Names,
    NonNegativeFloat,
    NonNegativeInt,
    NumNetworks,
    NumRows,
    PositiveFloat,
    PositiveInt,
    Share,
    StepCount,
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
    num_steps: StepCount = 1
    """Steps per env between two updates."""
    buffer_size: PositiveInt = 1_000_000
    """Capacity of the replay buffer in transitions. The oldest are overwritten."""
    batch_size: BatchSize = 256
    """Transitions per gradient step."""
    utd: PositiveFloat = 1.0
    """Update-to-data ratio: gradient steps of the critics per step."""
    demos: str | None = None
    """Additional demonstrations, written by `residual-rl demos collect`, Minari or robomimic."""
    demo_episodes: PositiveInt | None = None
    """Number of demonstrations to use, from the start of the file. None: all."""
    demo_share: Correlation = 0.0
    """Fraction of demonstrations in each batch; 0.5 is symmetric sampling (RLPD, Ball et al., 2023)."""

    # --- returns ---
    gamma: UnitInterval = 0.99
    """Discount factor per step."""
    n_step: StepCount = 5
    """Number of rewards in an n-step return."""
    bootstrap_at_done: BootstrapAtDone = "truncated"
    """When to bootstrap from the value of an episode's final observation: only if the episode was truncated,
    always, or never."""
    reward_scale: PositiveFloat = 0.2
    """Factor by which rewards are multiplied."""
    reward_shift: float = 0.0
    """Constant added to each reward before scaling."""
    normalize_targets: bool = False
    """Normalise the critics' targets by their running mean and standard deviation (PopArt)."""

    # --- exploration ---
    learning_starts: NonNegativeInt = 500
    """Number of steps before training of the critics starts."""
    actor_starts: NonNegativeInt = 2_000
    """Number of steps before training of the actor starts."""
    warmup_steps: NonNegativeInt = 2_000
    """Number of initial steps in which the residual is pure noise around the base policy."""
    warmup_noise: WarmupNoise = "correlated"
    """Noise during the warm-up: Gaussian and correlated in time, uniform, or none (base policy only)."""
    warmup_std: PositiveFloat = 0.5
    """Standard deviation of the correlated warm-up noise, in units of the residual's bound."""
    noise_correlation: Correlation = 0.9
    """Correlation of the exploration noise between consecutive policy steps; 0 is white noise."""
    prog_explore: NonNegativeInt = 0
    """Progressive exploration: number of steps over which the probability that the residual acts rises from 0
    to 1, drawn for each env and step. 0: it always acts."""

    # --- learning ---
    critic_learning_rate: PositiveFloat = 5e-4
    """Learning rate of the critics."""
    actor_learning_rate: PositiveFloat = 3e-4
    """Learning rate of the actor."""
    actor_every: PositiveInt = 2
    """Gradient steps of the critics per gradient step of the actor."""
    actor_penalty: NonNegativeFloat = 0.0
    """Weight of the squared residual action in the actor's loss, in units of scaled rewards. It keeps the
    residual at zero where the critics have no preference."""
    actor_ema_power: NonNegativeFloat = 0.75
    """Exponent of the moving average of the actor's weights that is deployed: the decay after gradient step t
    is 1 − (1 + t)^−power. 0 deploys the latest weights."""
    tau: Share = 0.005
    """Rate of the soft update of the target critics, per gradient step."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clipping: maximum norm of the gradients of critics and actor, separately."""

    # --- networks ---
    num_critics: NumNetworks = 4
    """Number of critics in the ensemble."""
    num_target_critics: NumNetworks = 2
    """Number of randomly chosen critics whose minimum is the target of a gradient step."""
    actor_value: Literal["min", "mean"] = "mean"
    """Objective of the actor: the minimum or the mean of the critics' values."""
    hidden_sizes: LayerSizes = (128, 128)
    """Sizes of the hidden layers of actor and critics."""
    activation: Activation = "relu"
    """Activation function."""
    critic_layer_norm: bool = True
    """Layer normalisation in the critics."""
    actor_layer_norm: bool = True
    """Layer normalisation in the actor."""
    output_init: NonNegativeFloat = 0.0
    """Initial scale of the last layers. Above 0, an untrained residual is not exactly zero."""
    critic_input: CriticInput = "sum"
    """Action in the critics' input: `sum` (the executed action), `res` (the residual action), or `concat`
    (base and residual action). The last two need a constant residual scale."""
    critic_base_action: bool = True
    """Include the base action in the critics' input."""
    actor_input: ActorInput = "obs_base_action"
    """Input of the actor: the observation, with or without the base action."""
    obs_keys: Names | None = None
    """Named observations of actor and critics, concatenated in this order. None: `state`; over a learned base
    also the vectors that it reads, `joint_target` where the task has it, and `base_chunk` and
    `chunk_position` where it executes chunks."""
    normalize_obs: bool = True
    """Normalise observations by running statistics and clip them at 10 standard deviations."""

    # --- speed ----------------------------------------------------------------------------------------
    compile: bool = False
    """Compile the losses with torch.compile. Intended for GPUs."""
    cudagraphs: bool = False
    """Record gradient steps as CUDA graphs. No effect without a GPU."""

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
                "nothing; set --demo-share 0.25, or 0.5 for symmetric sampling"
            )
        if "base_action" in (self.obs_keys or ()):
            raise ConfigError(
                "obs_keys must not name base_action here: set actor_input and critic_base_action instead"
            )

    @property
    def demo_batch_size(self) -> int:
        """Number of transitions from demonstrations in a batch."""
        return round(self.demo_share * self.batch_size)


@dataclass(frozen=True)
class SACCfg(OffPolicyCfg):
    """Settings of SAC."""

    init_std: PositiveFloat = 0.4
    """Initial standard deviation of the Gaussian, before the tanh that bounds the residual."""
    log_std_range: tuple[float, float] = (-5.0, 2.0)
    """Bounds of the logarithm of the standard deviation."""
    temperature: PositiveFloat = 0.01
    """Weight of the entropy; the initial value with --tune-temperature."""
    tune_temperature: bool = True
    """Tune the temperature such that the entropy equals `target_entropy`."""
    temperature_learning_rate: PositiveFloat = 3e-4
    """Learning rate of the logarithm of the temperature."""
    target_entropy: float | None = None
    """Target entropy of the residual action. None: minus the size of the action."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.log_std_range
        if not low < math.log(self.init_std) < high:
            raise ConfigError(
                f"init_std must be within exp({low:g}) and exp({high:g}), the log_std_range, not "
                f"{self.init_std}"
            )


@dataclass(frozen=True)
class GatedSACCfg(SACCfg):
    """Settings of SAC with a failure gate, for learned bases."""

    # --- the base alone ---
    warmup_noise: WarmupNoise = "none"
    warmup_steps: NonNegativeInt = 0
    gate_warmup_episodes: PositiveInt = 50
    """Number of episodes at the start in which the base policy acts alone."""
    gate_min_failures: NonNegativeInt = 10
    """Number of failures among them that are waited for."""
    base_share: UnitInterval = 0.2
    """Share of the later episodes from the task's own starts in which the base policy acts alone."""
    handback_share: UnitInterval = 0.2
    """Share of these episodes in which the residual hands back to the base policy at a random step."""
    takeover_share: UnitInterval = 0.0
    """Share of these episodes in which the base policy acts alone up to a random step; for free
    exploration, 0.3 shows the residual where the base policy gets."""
    restart_share: UnitInterval = 0.6
    """Share of the later episodes that start in a state in which the gate has opened for the first time in an
    earlier one, where the env can be restored to it. They show what the residual has to learn."""
    exploration: Literal["safe", "free"] = "safe"
    """`safe`: the gate limits where the residual explores and learns. `free`: it only limits the deployed
    policy."""

    # --- the failure gate ---
    gate_members: NumNetworks = 5
    """Number of networks that must agree that the base policy will fail."""
    gate_hidden_sizes: LayerSizes = (64, 64)
    """Sizes of their hidden layers."""
    gate_false_alarms: UnitInterval = 0.05
    """Share of the episodes solved by the base policy in which the gate may open, in predictions for episodes
    that a network has not learned from."""
    gate_late: UnitInterval = 0.95
    """Quantile of the lengths of the base policy's successes from which on a failure counts for the gate:
    earlier in the episode, the base policy may still be doing well. It counts from earlier on where otherwise
    less than the median of these lengths would be left."""
    gate_input_noise: NonNegativeFloat = 0.2
    """Standard deviation of the noise on the normalised observations that the networks learn from."""
    gate_learning_rate: PositiveFloat = 1e-3
    """Learning rate of the networks."""
    gate_batch_size: PositiveInt = 256
    """Observations per gradient step of the networks."""
    gate_buffer_size: NumRows = 65_536
    """Number of labelled observations to keep. The oldest are overwritten."""
    gate_fit_steps: PositiveInt = 2_000
    """Gradient steps of the first fit, after the warm-up."""
    gate_update_share: NonNegativeFloat = 0.25
    """Gradient steps of the gate per gradient step of the critics."""
    gate_every: PositiveInt = 200
    """Gradient steps of the gate between two calibrations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_input != "sum":
            raise ConfigError(
                "the failure gate changes the residual scale, which critic_input sum takes into"
                f" account and {self.critic_input} does not: choose --critic-input sum"
            )
        if self.base_share + self.handback_share + self.takeover_share > 1.0:
            raise ConfigError("base_share, handback_share and takeover_share must add up to at most 1")


@dataclass(frozen=True)
class PolicyDecoratorCfg(SACCfg):
    """Published settings of Policy Decorator: Yuan et al., ICLR 2025, arXiv 2412.13630, and its released
    scripts.

    With this learner, `train` uses 16 envs, so that `num_steps` means an update every 64 steps; decisions for
    whole executed chunks; the residual scale of peg insertion, 0.1; and no penalty. The settings are intended
    for a sparse reward of 1, which is a setting of the task (`so101-paper`: `--reward-mode sparse
    --reward-success 1`) and of which `reward_shift` subtracts 1 per decision, and for base policies that
    execute chunks of 4.

    Deviations: the executed action, which is also the critics' input, is clipped; the critics' gradients are
    clipped together, and their loss is half of the published one; the initial weights of hidden layers are
    orthogonal.
    """

    num_steps: StepCount = 4
    batch_size: BatchSize = 1024
    utd: PositiveFloat = 0.25
    gamma: UnitInterval = 0.97
    n_step: StepCount = 1
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
    num_critics: NumNetworks = 2
    actor_value: Literal["min", "mean"] = "min"
    hidden_sizes: LayerSizes = (256, 256, 256)
    critic_layer_norm: bool = False
    actor_layer_norm: bool = False
    output_init: NonNegativeFloat = 0.01
    critic_base_action: bool = False
    actor_input: ActorInput = "obs"
    obs_keys: Names | None = ("state",)
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
    """Standard deviation of the noise on the target actions, which smooths the critics."""
    target_noise_clip: NonNegativeFloat = 0.5
    """Bound of the noise on the target actions."""
