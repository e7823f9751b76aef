"""Settings that the off-policy learners share, apart from their code so that the command line's help needs no
torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from residual_rl.errors import ConfigError
from residual_rl.learners.ppo.config import Activation, BootstrapAtDone
from residual_rl.utils.validation import check_fields

CriticInput = Literal["sum", "res", "concat"]
ActorInput = Literal["obs", "obs_base_action"]
WarmupNoise = Literal["correlated", "uniform", "none"]


@dataclass(frozen=True)
class OffPolicyCfg:
    """Settings of a learner from a replay buffer. Steps are those that the learner acts in, over all
    worlds."""

    # --- data -----------------------------------------------------------------------------------------
    num_steps: int = 1
    """Steps per env between two updates."""
    buffer_size: int = 1_000_000
    """Transitions that are kept; the oldest give way."""
    batch_size: int = 256
    """Transitions in a gradient step."""
    utd: float = 1.0
    """Updates to data: gradient steps of the critics per step."""
    demos: str | None = None
    """File of demonstrations to learn from as well, as `residual-rl demos collect` makes it."""
    demo_share: float = 0.0
    """Share of each batch that comes from demonstrations; 0.5 is symmetric sampling (RLPD, Ball et al.,
    2023)."""

    # --- returns --------------------------------------------------------------------------------------
    gamma: float = 0.99
    """Discount per step."""
    n_step: int = 5
    """Rewards that are summed before the critics' own estimate follows."""
    bootstrap_at_done: BootstrapAtDone = "truncated"
    """After which ends of an episode the value of its final observation counts: of truncated ones, always, or
    never."""
    reward_scale: float = 0.2
    """Factor on rewards."""
    reward_shift: float = 0.0
    """Added to each reward before it is scaled."""
    normalize_targets: bool = False
    """Critics learn targets in units of their running mean and standard deviation."""

    # --- exploration ----------------------------------------------------------------------------------
    learning_starts: int = 500
    """Steps after which the critics begin to learn."""
    actor_starts: int = 2_000
    """Steps after which the actor begins to learn."""
    warmup_steps: int = 2_000
    """Steps in which the residual is noise alone, around the base policy."""
    warmup_noise: WarmupNoise = "correlated"
    """That noise: Gaussian and correlated in time, uniform in each step, or none, which leaves the base
    policy alone."""
    warmup_std: float = 0.5
    """Standard deviation of the correlated warm-up noise, in units of the residual's bound."""
    noise_correlation: float = 0.9
    """Correlation of the exploration noise from one policy step to the next; 0 is white noise."""
    prog_explore: int = 0
    """Steps over which the residual comes in: in each world and step it acts with the share of them that is
    done. 0 acts at once."""

    # --- learning -------------------------------------------------------------------------------------
    critic_learning_rate: float = 5e-4
    """Step size of Adam for the critics."""
    actor_learning_rate: float = 3e-4
    """Step size of Adam for the actor."""
    actor_every: int = 2
    """Gradient steps of the critics for each of the actor."""
    actor_penalty: float = 0.0
    """Weight of the squared size of the residual action in the actor's loss: where the critics see no
    difference, the base policy is left alone. In units of values, which are those of scaled rewards."""
    actor_ema_power: float = 0.75
    """What is deployed is an average of the actor's weights, whose decay after its gradient step t is 1 − (1
    + t)^−power; 0 deploys the newest."""
    tau: float = 0.005
    """Share of the critics that the target critics take over in each gradient step."""
    max_grad_norm: float = 1.0
    """Gradients of the critics together, and of the actor, are scaled down to this norm."""

    # --- networks -------------------------------------------------------------------------------------
    num_critics: int = 4
    """Critics in the ensemble."""
    num_target_critics: int = 2
    """Critics, drawn anew for each gradient step, whose least value makes the target."""
    actor_value: Literal["min", "mean"] = "mean"
    """What the actor climbs: the least of the critics' values, or their mean."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Width of each hidden layer, of actor and critics alike."""
    activation: Activation = "relu"
    """Activation between layers."""
    critic_layer_norm: bool = True
    """Normalise the hidden layers of the critics."""
    actor_layer_norm: bool = True
    """Normalise the hidden layers of the actor."""
    output_init: float = 0.0
    """Size of the last layers' weights at the start; above 0 a fresh residual is not exactly zero."""
    critic_input: CriticInput = "sum"
    """What the critics judge: the composed action that is executed, the residual action, or base and residual
    action beside each other."""
    critic_base_action: bool = True
    """The critics see the base action as well, whatever they judge."""
    actor_input: ActorInput = "obs_base_action"
    """What the actor sees: the observation, or the base action as well."""
    obs_keys: tuple[str, ...] = ("state",)
    """Named observations that actor and critics see, joined in this order."""
    normalize_obs: bool = True
    """Normalise observations by running statistics, clipped at 10 standard deviations."""

    # --- speed ----------------------------------------------------------------------------------------
    compile: bool = False
    """Compile the losses with torch.compile; meant for a GPU."""
    cudagraphs: bool = False
    """Record gradient steps as CUDA graphs; without a GPU they run eagerly."""

    def __post_init__(self) -> None:
        check_fields(self)
        at_least_one = ("num_steps", "buffer_size", "batch_size", "n_step", "actor_every", "num_critics", "num_target_critics")
        for name in at_least_one:
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("learning_starts", "actor_starts", "warmup_steps", "prog_explore", "output_init", "actor_penalty", "actor_ema_power"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("utd", "reward_scale", "warmup_std", "critic_learning_rate", "actor_learning_rate", "max_grad_norm"):
            require(self, name, getattr(self, name) > 0.0, "above 0")
        require(self, "gamma", 0.0 <= self.gamma <= 1.0, "from 0 to 1")
        require(self, "tau", 0.0 < self.tau <= 1.0, "above 0 and at most 1")
        for name in ("noise_correlation", "demo_share"):
            require(self, name, 0.0 <= getattr(self, name) < 1.0, "at least 0 and below 1")
        require(self, "num_target_critics", self.num_target_critics <= self.num_critics, f"at most num_critics ({self.num_critics})")
        require(self, "hidden_sizes", all(size >= 1 for size in self.hidden_sizes), "at least 1 each")
        if self.demos is not None and self.demo_batch_size == 0:
            raise ConfigError(
                f"demos has no effect: demo_share {self.demo_share} of a batch of {self.batch_size} is nothing; set --demo-share 0.25, or "
                "0.5 for symmetric sampling"
            )
        if not self.obs_keys or len(set(self.obs_keys)) != len(self.obs_keys):
            raise ConfigError(f"obs_keys must name at least one observation and none twice, not {self.obs_keys}")
        if "base_action" in self.obs_keys:
            raise ConfigError("obs_keys must not name base_action here: actor_input and critic_base_action say who sees it")

    @property
    def demo_batch_size(self) -> int:
        """Demonstrated transitions in a batch."""
        return round(self.demo_share * self.batch_size)


def require(cfg: Any, name: str, holds: bool, what: str) -> None:
    """Raise `ConfigError` where a setting is not `what` it must be."""
    if not holds:
        raise ConfigError(f"{name} must be {what}, not {getattr(cfg, name)}")


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
    """Entropy of the residual action that the temperature is tuned to; none is minus the number of its
    elements."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("init_std", "temperature", "temperature_learning_rate"):
            require(self, name, getattr(self, name) > 0.0, "above 0")
        low, high = self.log_std_range
        if not low < math.log(self.init_std) < high:
            raise ConfigError(f"init_std must be within exp({low:g}) and exp({high:g}), as log_std_range says, not {self.init_std}")


@dataclass(frozen=True)
class PolicyDecoratorCfg(SACCfg):
    """Settings of Policy Decorator as it was published: Yuan et al., ICLR 2025, arXiv 2412.13630, and its
    released scripts.

    With it `train` has 16 worlds, where `num_steps` is training every 64 steps; decisions of whole executed
    chunks; the residual scale of peg insertion, 0.1; and no penalty. It is meant for sparse rewards of 1
    (each decision costs 1), which the task has to be told (`so101-paper`: `--reward-mode sparse
    --reward-success 1`), and for base policies that execute chunks of 4. Deviations: the executed action, and
    so the critics' input, is clipped; critics are clipped together, and their loss is half of the published
    one; hidden layers begin orthogonal, not as torch has them.
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


@dataclass(frozen=True)
class TD3Cfg(OffPolicyCfg):
    """Settings of TD3."""

    exploration_std: float = 0.3
    """Standard deviation of the exploration noise, in units of the residual's bound."""
    target_noise: float = 0.2
    """Standard deviation of the noise on the target's actions, which smooths the critics."""
    target_noise_clip: float = 0.5
    """That noise is clipped here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("exploration_std", "target_noise", "target_noise_clip"):
            require(self, name, getattr(self, name) >= 0.0, "0 or more")
