"""Settings of PPO. This module does not import torch, so that the command line's help stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from residual_rl.errors import ConfigError
from residual_rl.utils.validation import check_fields

BootstrapAtDone = Literal["truncated", "always", "never"]
Activation = Literal["tanh", "relu", "elu", "silu"]
Schedule = Literal["linear", "constant"]
NoiseLikelihood = Literal["marginal", "conditional"]


@dataclass(frozen=True)
class PPOCfg:
    """Settings of PPO."""

    num_steps: int = 64
    """Steps per env between two updates."""
    minibatch_size: int = 256
    """Transitions per gradient step. If it does not divide num_envs * num_steps, a similar size is used so
    that all minibatches are equal."""
    num_epochs: int = 8
    """Passes over the collected transitions per update."""
    learning_rate: float = 5e-4
    """Initial learning rate of Adam."""
    learning_rate_schedule: Schedule = "linear"
    """Schedule of the learning rate: linear decays to 0 at the end of training."""
    gamma: float = 0.99
    """Discount per policy step."""
    gae_lambda: float = 0.95
    """Trace decay of the advantage estimate: 0 relies on the critic, 1 on the rewards."""
    clip_range: float = 0.2
    """Bound on the deviation of the probability ratio from 1 (clipped surrogate)."""
    bootstrap_at_done: BootstrapAtDone = "truncated"
    """When to bootstrap from the final observation of an episode: if it was truncated, always, or never.
    Always suits rewards that are paid for each step in a good state, where termination on success would
    otherwise reduce the return."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    value_coef: float = 0.5
    """Weight of the value loss (mean squared error, not clipped)."""
    max_grad_norm: float = 0.5
    """Bound of the global gradient norm."""
    target_kl: float | None = None
    """Stop an update after an epoch whose mean approximate KL divergence exceeds this; None disables it."""
    init_std: float = 0.5
    """Initial standard deviation of the residual, in units of its bound."""
    final_std: float | None = None
    """Final standard deviation of a linear schedule. None: the standard deviation is learned."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Width of each hidden layer of actor and critic."""
    activation: Activation = "tanh"
    """Activation between layers."""
    normalize_obs: bool = True
    """Normalise observations by running statistics, clipped at 10 standard deviations."""
    normalize_reward: bool = True
    """Scale rewards by the running standard deviation of the discounted return."""
    obs_keys: tuple[str, ...] | None = None
    """Observations of the policy, including cameras. None: `state`, `base_action` and all cameras; if the env
    has cameras but no `state`, the robot's proprioception replaces it."""
    critic_obs_keys: tuple[str, ...] | None = None
    """Observations of the critic, for example a `state` that the policy cannot measure. None: those of the
    policy."""
    image_features: int = 256
    """Features per image encoder; cameras of the same resolution share an encoder."""
    random_shift: int = 0
    """Maximum random shift of images during exploration [pixels]; 0 disables it."""
    noise_correlation: float = 0.0
    """Correlation of the exploration noise from one policy step to the next; 0 is white noise."""
    noise_likelihood: NoiseLikelihood = "marginal"
    """Likelihood of correlated noise: marginal treats the noise of each step as independent, conditional
    conditions it on the earlier noise."""
    compile: bool = False
    """Compile the loss with torch.compile; intended for GPUs."""
    cudagraphs: bool = False
    """Record gradient steps as CUDA graphs; no effect without a GPU."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("num_steps", "minibatch_size", "num_epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "clip_range", "max_grad_norm", "init_std"):
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.final_std is not None and not self.final_std > 0.0:
            raise ConfigError(f"final_std must be above 0, or none, not {self.final_std}")
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        for name in ("entropy_coef", "value_coef"):
            if not getattr(self, name) >= 0.0:
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.target_kl is not None and not self.target_kl > 0.0:
            raise ConfigError(f"target_kl must be above 0, or none, not {self.target_kl}")
        if not 0.0 <= self.noise_correlation < 1.0:
            raise ConfigError(f"noise_correlation must be at least 0 and below 1, not {self.noise_correlation}")
        if any(size < 1 for size in self.hidden_sizes):
            raise ConfigError(f"hidden_sizes must be at least 1 each, not {self.hidden_sizes}")
        if self.image_features < 1:
            raise ConfigError(f"image_features must be at least 1, not {self.image_features}")
        if self.random_shift < 0:
            raise ConfigError(f"random_shift must be 0 or more pixels, not {self.random_shift}")
        for name in ("obs_keys", "critic_obs_keys"):
            keys = getattr(self, name)
            if keys is not None and (not keys or len(set(keys)) != len(keys)):
                raise ConfigError(f"{name} must name at least one observation and none twice, or be none, not {keys}")

    def minibatches(self, num_envs: int) -> tuple[int, int]:
        """Number and size of the minibatches of an epoch with `num_envs` envs. A small remainder of
        transitions is skipped.

        Raises `ConfigError` if `minibatch_size` exceeds the number of transitions.
        """
        samples = num_envs * self.num_steps
        if self.minibatch_size > samples:
            raise ConfigError(f"minibatch_size is {self.minibatch_size} but num_envs * num_steps is {samples}: choose {samples} or less")
        count = round(samples / self.minibatch_size)
        return count, samples // count
