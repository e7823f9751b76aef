"""Settings of PPO, apart from its code so that the command line's help needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from residual_rl.errors import ConfigError
from residual_rl.utils.validation import (
    CheckedCfg,
    Correlation,
    Names,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitInterval,
)

BootstrapAtDone = Literal["truncated", "always", "never"]
Activation = Literal["tanh", "relu", "elu", "silu"]
Schedule = Literal["linear", "constant"]
NoiseLikelihood = Literal["marginal", "conditional"]


@dataclass(frozen=True)
class PPOCfg(CheckedCfg):
    """Settings of PPO."""

    num_steps: PositiveInt = 64
    """Steps per env between two updates."""
    minibatch_size: PositiveInt = 256
    """Transitions in a gradient step; rounded so that all minibatches are equal where it does not divide
    num_envs * num_steps."""
    num_epochs: PositiveInt = 8
    """Passes over the collected transitions in an update."""
    learning_rate: PositiveFloat = 5e-4
    """Step size of Adam at the start."""
    learning_rate_schedule: Schedule = "linear"
    """Linear falls to 0 at the end of training."""
    gamma: UnitInterval = 0.99
    """Discount per policy step."""
    gae_lambda: UnitInterval = 0.95
    """Trace decay of the advantage estimate: 0 trusts the critic, 1 the rewards."""
    clip_range: PositiveFloat = 0.2
    """Clipping range of the probability ratio around 1."""
    bootstrap_at_done: BootstrapAtDone = "truncated"
    """When to bootstrap from the value of an episode's final observation: if it was truncated, always, or
    never. `always` suits rewards for each step in a good state, where ending by success would otherwise lose
    reward."""
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of the entropy bonus."""
    value_coef: NonNegativeFloat = 0.5
    """Weight of the value loss (mean squared error, not clipped)."""
    max_grad_norm: PositiveFloat = 0.5
    """Bound of the norm of the gradient of all parameters."""
    target_kl: PositiveFloat | None = None
    """End an update after an epoch whose mean approximate KL divergence exceeds this. None: never."""
    init_std: PositiveFloat = 0.5
    """Standard deviation of the residual at the start, in units of the residual's bound."""
    final_std: PositiveFloat | None = None
    """Standard deviation at the end of training, reached by a linear schedule instead of learning. None: it
    is learned."""
    hidden_sizes: tuple[PositiveInt, ...] = (128, 128)
    """Width of each hidden layer, of actor and critic alike."""
    activation: Activation = "tanh"
    """Activation between layers."""
    normalize_obs: bool = True
    """Normalise observations by running statistics, clipped at 10 standard deviations."""
    normalize_reward: bool = True
    """Scale rewards by the running standard deviation of the discounted return."""
    obs_keys: Names | None = None
    """Named observations of the policy, including cameras. None: `state`, `base_action` and all cameras; in
    an env with cameras and without `state`, proprioception in its place."""
    critic_obs_keys: Names | None = None
    """Named observations of the critic, e.g. a `state` that the policy does not get. None: those of the
    policy."""
    image_features: PositiveInt = 256
    """Output size of an image encoder; cameras of the same size share one."""
    random_shift: NonNegativeInt = 0
    """Largest random shift of images while the policy explores [px]; 0 disables it."""
    noise_correlation: Correlation = 0.0
    """Correlation of the exploration noise from one policy step to the next; 0 is white noise."""
    noise_likelihood: NoiseLikelihood = "marginal"
    """Likelihood of correlated noise: marginal treats the noise of each step as independent, conditional
    conditions on that of the step before."""
    compile: bool = False
    """Compile the loss with torch.compile; meant for a GPU."""
    cudagraphs: bool = False
    """Record gradient steps as CUDA graphs; without a GPU they run eagerly."""

    def minibatches(self, num_envs: int) -> tuple[int, int]:
        """Number of minibatches in an epoch with `num_envs` envs, and their size; an epoch leaves out the few
        transitions that remain."""
        samples = num_envs * self.num_steps
        if self.minibatch_size > samples:
            raise ConfigError(
                f"minibatch_size is {self.minibatch_size} but num_envs * num_steps is {samples}: choose "
                f"{samples} or less"
            )
        count = round(samples / self.minibatch_size)
        return count, samples // count
