"""Settings of PPO. This module does not import torch, so that the command line's help stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from residual_rl.errors import ConfigError
from residual_rl.utils.validation import (
    BatchSize,
    CheckedCfg,
    Correlation,
    LayerSize,
    LayerSizes,
    Names,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StepCount,
    UnitInterval,
)

BootstrapAtDone = Literal["truncated", "always", "never"]
Activation = Literal["tanh", "relu", "elu", "silu"]
Schedule = Literal["linear", "constant"]
NoiseLikelihood = Literal["marginal", "conditional"]


@dataclass(frozen=True)
class PPOCfg(CheckedCfg):
    """Settings of PPO."""

    num_steps: StepCount = 64
    """Steps per env between two updates."""
    minibatch_size: BatchSize = 256
    """Transitions per gradient step, rounded so that all minibatches of an update have the same size."""
    num_epochs: PositiveInt = 8
    """Passes over the collected transitions per update."""
    learning_rate: PositiveFloat = 5e-4
    """Initial learning rate of Adam."""
    learning_rate_schedule: Schedule = "linear"
    """Schedule of the learning rate: `linear` falls to 0 at the end of training."""
    gamma: UnitInterval = 0.99
    """Discount factor per policy step."""
    gae_lambda: UnitInterval = 0.95
    """Lambda of generalised advantage estimation: 0 relies on the critic, 1 on the rewards."""
    clip_range: PositiveFloat = 0.2
    """Clip range of the probability ratio around 1."""
    bootstrap_at_done: BootstrapAtDone = "truncated"
    """When to bootstrap from the value of an episode's final observation: only if the episode was truncated,
    always, or never. `always` suits tasks that reward each step in a good state, where success would
    otherwise forfeit the rewards to come."""
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of the entropy bonus."""
    value_coef: NonNegativeFloat = 0.5
    """Weight of the value loss (mean squared error, not clipped)."""
    max_grad_norm: PositiveFloat = 0.5
    """Gradient clipping: maximum norm of the gradient of all parameters."""
    target_kl: PositiveFloat | None = None
    """Stop an update after the epoch whose mean approximate KL divergence exceeds this. None: never."""
    init_std: PositiveFloat = 0.5
    """Initial standard deviation of the residual, in units of the residual's bound."""
    final_std: PositiveFloat | None = None
    """Standard deviation at the end of training, reached by a linear schedule. None: it is learned."""
    hidden_sizes: LayerSizes = (128, 128)
    """Sizes of the hidden layers of actor and critic."""
    activation: Activation = "tanh"
    """Activation function."""
    normalize_obs: bool = True
    """Normalise observations by running statistics and clip them at 10 standard deviations."""
    normalize_reward: bool = True
    """Scale rewards by the running standard deviation of the discounted return."""
    obs_keys: Names | None = None
    """Named observations of the policy, including cameras. None: `state`, `base_action` and all cameras, with
    proprioception in place of `state` if the env has cameras but no `state`; over a learned base also
    the vectors that it reads, `joint_target` where the task has it, and `base_chunk` and `chunk_position`
    where it executes chunks."""
    critic_obs_keys: Names | None = None
    """Named observations of the critic, e.g. a `state` that is hidden from the policy. None: those of the
    policy."""
    image_features: LayerSize = 256
    """Number of features per image encoder. Cameras of the same resolution share one."""
    random_shift: NonNegativeInt = 0
    """Maximum random shift of images during exploration [px]; 0 disables it."""
    noise_correlation: Correlation = 0.0
    """Correlation of the exploration noise between consecutive policy steps; 0 is white noise."""
    noise_likelihood: NoiseLikelihood = "marginal"
    """Likelihood of correlated noise: `marginal` treats the noise of each step as independent, `conditional`
    conditions on the noise of the previous step."""
    compile: bool = False
    """Compile the loss with torch.compile. Intended for GPUs."""
    cudagraphs: bool = False
    """Record gradient steps as CUDA graphs. No effect without a GPU."""

    def minibatches(self, num_envs: int) -> tuple[int, int]:
        """Number and size of the minibatches of an epoch with `num_envs` envs. Each epoch leaves out the
        remaining few transitions."""
        samples = num_envs * self.num_steps
        if samples < 2:
            raise ConfigError(
                "num_envs * num_steps is 1, and PPO compares the transitions of an update with each other: "
                "choose num_steps 2 or more"
            )
        if self.minibatch_size > samples:
            raise ConfigError(
                f"minibatch_size is {self.minibatch_size} but num_envs * num_steps is {samples}: choose "
                f"{samples} or less"
            )
        count = round(samples / self.minibatch_size)
        return count, samples // count
