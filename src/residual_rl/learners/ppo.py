"""Proximal policy optimisation of a bounded residual."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from residual_rl.errors import ConfigError
from residual_rl.learners.compiled import compiled, cuda_graphed
from residual_rl.learners.networks import ACTIVATIONS, MLP, ResidualPolicy, load_module_state, module_state
from residual_rl.learners.noise import CorrelatedNoise, Noise
from residual_rl.learners.normalizers import RewardScaler
from residual_rl.learners.optimizer import FlatAdam
from residual_rl.learners.returns import gae
from residual_rl.types import Metrics, Obs, State, Transition

if TYPE_CHECKING:
    from residual_rl.learners.networks import ObsSpace

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True)
class PPOCfg:
    """Settings of PPO."""

    num_steps: int = 64
    """Steps per env between two updates."""
    minibatch_size: int = 256
    """Transitions in a gradient step. Where it does not divide num_envs * num_steps, minibatches are made equal and as near to it as possible."""
    num_epochs: int = 8
    """Passes over the collected transitions in an update."""
    learning_rate: float = 5e-4
    """Step size of Adam at the start."""
    learning_rate_schedule: Literal["linear", "constant"] = "linear"
    """Linear falls to 0 at the end of training."""
    gamma: float = 0.99
    """Discount per policy step."""
    gae_lambda: float = 0.95
    """Trace decay of the advantage estimate: 0 trusts the critic, 1 the rewards."""
    clip_range: float = 0.2
    """How far a probability ratio may move from 1 before its gradient is cut."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    value_coef: float = 0.5
    """Weight of the value loss (mean squared error, not clipped)."""
    max_grad_norm: float = 0.5
    """Gradients of all parameters together are scaled down to this norm."""
    target_kl: float | None = None
    """Stop the update after an epoch whose mean approximate KL divergence exceeds this; none never stops."""
    init_std: float = 0.5
    """Standard deviation of the residual at the start, in units of the residual's bound."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Width of each hidden layer, of actor and critic alike."""
    activation: Literal["tanh", "relu", "elu", "silu"] = "tanh"
    """Activation between layers."""
    normalize_obs: bool = True
    """Normalise observations by running statistics, clipped at 10 standard deviations."""
    normalize_reward: bool = True
    """Scale rewards by the running standard deviation of the discounted return."""
    obs_keys: tuple[str, ...] = ("state", "base_action")
    """Named observations that the policy and the critic see, joined in this order."""
    noise_correlation: float = 0.0
    """Correlation of the exploration noise from one policy step to the next; 0 is white noise."""
    noise_likelihood: Literal["marginal", "conditional"] = "marginal"
    """Likelihood of correlated noise: marginal treats each step's noise as independent, conditional takes the noise before as given."""
    compile: bool = False
    """Compile the loss with torch.compile; worth it on a GPU."""
    cudagraphs: bool = False
    """Record gradient steps as CUDA graphs; runs eagerly on a CPU."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "minibatch_size", "num_epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "clip_range", "max_grad_norm", "init_std"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        for name in ("entropy_coef", "value_coef"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.target_kl is not None and not self.target_kl > 0.0:
            raise ConfigError(f"target_kl must be above 0, or none, not {self.target_kl}")
        if not 0.0 <= self.noise_correlation < 1.0:
            raise ConfigError(f"noise_correlation must be from 0 to below 1, not {self.noise_correlation}")
        choices = {"learning_rate_schedule": ("linear", "constant"), "noise_likelihood": ("marginal", "conditional"), "activation": (*ACTIVATIONS,)}
        for name, valid in choices.items():
            if getattr(self, name) not in valid:
                raise ConfigError(f"{name} must be one of {', '.join(valid)}, not {getattr(self, name)!r}")
        if any(size < 1 for size in self.hidden_sizes):
            raise ConfigError(f"hidden_sizes must be at least 1 each, not {self.hidden_sizes}")
        if not self.obs_keys or len(set(self.obs_keys)) != len(self.obs_keys):
            raise ConfigError(f"obs_keys must name at least one observation and none twice, not {self.obs_keys}")


def make_policy(cfg: PPOCfg, obs_space: ObsSpace, action_dim: int, device: torch.device | str = "cpu", seed: int = 0) -> ResidualPolicy:
    """The policy that `cfg` describes, fresh; `load_module_state` gives it the weights of an exported one."""
    generator = torch.Generator().manual_seed(seed)
    return ResidualPolicy(
        cfg.obs_keys, obs_space, action_dim, cfg.hidden_sizes, cfg.activation, cfg.init_std, cfg.normalize_obs, generator, torch.device(device)
    )


class PPO:
    """PPO with a clipped surrogate (Schulman et al., "Proximal Policy Optimization Algorithms", 2017), implementing `types.Learner`.

    Deviations and choices:

    - Nothing is evaluated by the critic while collecting: values of observations and of true next observations are computed
      in one batch when an update starts.
    - Observation statistics take in a rollout when its update starts, and stay as they are until the next. Log-probabilities of the
      acting policy are those of the noise that was drawn, so they stay exact.
    - Advantages are normalised over the rollout, not over each minibatch.
    - With correlated noise the default likelihood is that of each step's marginal N(mean, std), as in Hollenstein et al., "Colored Noise in
      PPO", AAAI 2024: exact for white noise, an approximation for the rest.
    """

    def __init__(self, cfg: PPOCfg, obs_space: ObsSpace, action_dim: int, num_envs: int, device: torch.device | str = "cpu", seed: int = 0):
        self.cfg, self.num_envs, self.num_steps, self.device = cfg, num_envs, cfg.num_steps, torch.device(device)
        samples = num_envs * cfg.num_steps
        if cfg.minibatch_size > samples:
            raise ConfigError(f"minibatch_size is {cfg.minibatch_size} but num_envs * num_steps is {samples}: choose {samples} or less")
        self.num_minibatches = round(samples / cfg.minibatch_size)
        self.minibatch_size = samples // self.num_minibatches

        weights_seed, noise_seed, shuffle_seed = torch.randint(2**62, (3,), generator=torch.Generator().manual_seed(seed)).tolist()
        self.policy = make_policy(cfg, obs_space, action_dim, self.device, weights_seed)
        obs_dim = self.policy.obs_vector.size
        critic_generator = torch.Generator().manual_seed(weights_seed + 1)
        self.critic = MLP((obs_dim, *cfg.hidden_sizes, 1), cfg.activation, critic_generator).to(self.device)
        self.reward_scaler = RewardScaler(num_envs, cfg.gamma, device=self.device) if cfg.normalize_reward else None
        self.noise = CorrelatedNoise(num_envs, action_dim, cfg.noise_correlation, noise_seed, self.device)
        self._shuffle = torch.Generator(self.device).manual_seed(shuffle_seed)
        named = [*self.policy.named_parameters(), *((f"critic.{name}", p) for name, p in self.critic.named_parameters())]
        self.optimizer = FlatAdam(named, cfg.learning_rate, cfg.max_grad_norm)
        self.progress = 0.0

        def storage(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(cfg.num_steps, num_envs, *shape, dtype=dtype, device=self.device)

        self._rollout = {
            "obs": storage(obs_dim),
            "next_obs": storage(obs_dim),
            "raw_action": storage(action_dim),
            "noise": storage(action_dim),
            "reward": storage(),
            "terminated": storage(dtype=torch.bool),
            "ended": storage(dtype=torch.bool),
        }
        self._conditional = cfg.noise_likelihood == "conditional" and cfg.noise_correlation > 0.0
        if self._conditional:
            self._rollout |= {"noise_shift": storage(action_dim), "noise_spread": storage(1)}
        self._filled = 0
        self._acted: tuple[Tensor, Noise] | None = None
        self._loss = compiled(self._loss, cfg.compile)  # type: ignore[method-assign]
        self._gradient_step = cuda_graphed(self._gradient_step, cfg.cudagraphs, self.device, cfg.compile)  # type: ignore[method-assign]

    # Collecting

    @torch.no_grad()
    def act(self, obs: Obs, deterministic: bool = False) -> Tensor:
        """The residual action [B, A] in [-1, 1]; with exploration noise unless `deterministic`, and then to be followed by `observe`."""
        if deterministic:
            return self.policy.act(obs)
        noise = self.noise.sample()
        raw = torch.addcmul(self.policy.mean(obs), self.policy.log_std.exp(), noise.value)
        self._acted = raw, noise
        return raw.clamp(-1.0, 1.0)

    @torch.no_grad()
    def observe(self, transition: Transition) -> None:
        """Store the step that followed the last `act`."""
        if self._acted is None:
            raise RuntimeError("observe() must follow a non-deterministic act()")
        if self._filled == self.num_steps:
            raise RuntimeError(f"the rollout of {self.num_steps} steps is full: call update()")
        (raw, noise), self._acted = self._acted, None
        row = {name: tensor[self._filled] for name, tensor in self._rollout.items()}
        self.policy.obs_vector(transition.obs, out=row["obs"], device=self.device)
        self.policy.obs_vector(transition.next_obs, out=row["next_obs"], device=self.device)
        row["raw_action"].copy_(raw)
        row["noise"].copy_(noise.value)
        row["reward"].copy_(transition.reward)
        row["terminated"].copy_(transition.terminated)
        torch.logical_or(row["terminated"], transition.truncated.to(self.device), out=row["ended"])
        if self._conditional:
            row["noise_shift"].copy_(noise.shift)
            row["noise_spread"].copy_(noise.spread)
        self.noise.restart(row["ended"])
        self._filled += 1

    # Learning

    def update(self) -> Metrics:
        """Learn from the `num_steps` collected steps. Raises `NonFiniteError` before anything that is not finite reaches a weight."""
        if self._filled != self.num_steps:
            raise RuntimeError(f"update() needs {self.num_steps} observed steps, there are {self._filled}")
        cfg, learning_rate = self.cfg, self.cfg.learning_rate
        if cfg.learning_rate_schedule == "linear":
            learning_rate *= 1.0 - self.progress
        self.optimizer.learning_rate.fill_(learning_rate)
        batch, explained_variance = self._prepare()
        sums = torch.zeros(len(self._MINIBATCH_METRICS), device=self.device)
        steps = 0
        for _ in range(cfg.num_epochs):
            order = torch.randperm(len(batch[0]), generator=self._shuffle, device=self.device)
            minibatches = [tensor[order].split(self.minibatch_size) for tensor in batch]
            epoch_sums = torch.zeros_like(sums)
            for i in range(self.num_minibatches):
                epoch_sums += self._gradient_step(*(pieces[i] for pieces in minibatches))
                if self.device.type == "cpu":
                    self.optimizer.check()
            sums += epoch_sums
            steps += self.num_minibatches
            if cfg.target_kl is not None and epoch_sums[0].item() / self.num_minibatches > cfg.target_kl:
                break
        self.optimizer.check()
        self._filled = 0
        metrics = dict(zip(self._MINIBATCH_METRICS, (sums / steps).tolist(), strict=True))
        metrics["train/explained_variance"] = explained_variance.item()
        metrics["train/learning_rate"] = learning_rate
        metrics["train/std"] = self.policy.log_std.exp().mean().item()
        return metrics

    @torch.no_grad()
    def _prepare(self) -> tuple[list[Tensor], Tensor]:
        """Flat [T * B, …] tensors in the order in which `_loss` takes them, and the explained variance of the old values."""
        rollout, shape = self._rollout, (self.num_steps, self.num_envs)
        reward = rollout["reward"]
        if self.policy.normalizer is not None:
            self.policy.normalizer.update(rollout["obs"])
        if self.reward_scaler is not None:
            reward = self.reward_scaler(reward, rollout["ended"])
        obs = self.policy.normalize(rollout["obs"].flatten(0, 1))
        next_obs = self.policy.normalize(rollout["next_obs"].flatten(0, 1))
        value, next_value = (v.view(shape) for v in self.critic(torch.cat([obs, next_obs])).chunk(2))
        advantage, target = gae(reward, value, next_value, rollout["terminated"], rollout["ended"], self.cfg.gamma, self.cfg.gae_lambda)
        explained_variance = 1.0 - (target - value).var() / (target.var() + 1e-8)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)

        white = rollout["noise"]
        given = ()
        if self._conditional:
            given = (rollout["noise_shift"].flatten(0, 1), rollout["noise_spread"].flatten(0, 1))
            white = (white - rollout["noise_shift"]) / rollout["noise_spread"]
        old_log_prob = self._log_prob(white)
        flat = (t.flatten(0, 1) for t in (rollout["raw_action"], old_log_prob, advantage, target))
        return [obs, *flat, *given], explained_variance

    def _log_prob(self, white: Tensor) -> Tensor:
        """Log-density [...] of the action that the white noise [..., A] makes; up to the noise's spread, which cancels in ratios."""
        return -0.5 * white.square().sum(-1) - (self.policy.log_std + _LOG_SQRT_2PI).sum()

    _MINIBATCH_METRICS = (
        "train/approx_kl",
        "train/clip_fraction",
        "train/policy_gradient_loss",
        "train/value_loss",
        "train/entropy_loss",
        "train/loss",
    )

    def _loss(
        self, obs: Tensor, raw_action: Tensor, old_log_prob: Tensor, advantage: Tensor, target: Tensor, *given: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of a minibatch, and its metrics in the order of `_MINIBATCH_METRICS`. `given`: shift and spread of the noise."""
        cfg = self.cfg
        white = (raw_action - self.policy.actor(obs)) * (-self.policy.log_std).exp()
        if given:
            white = (white - given[0]) / given[1]
        log_ratio = self._log_prob(white) - old_log_prob
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1.0 - cfg.clip_range, 1.0 + cfg.clip_range)
        policy_loss = -torch.min(advantage * ratio, advantage * clipped).mean()
        value_loss = (self.critic(obs).squeeze(-1) - target).square().mean()
        entropy_loss = -(self.policy.log_std + 0.5 + _LOG_SQRT_2PI).sum()
        loss = policy_loss + cfg.value_coef * value_loss + cfg.entropy_coef * entropy_loss
        with torch.no_grad():
            approx_kl = (ratio - 1.0 - log_ratio).mean()  # Schulman, "Approximating KL Divergence", 2020: k3
            clip_fraction = (ratio != clipped).float().mean()
            metrics = torch.stack([approx_kl, clip_fraction, policy_loss, value_loss, entropy_loss, loss])
        return loss, metrics

    def _gradient_step(self, *minibatch: Tensor) -> Tensor:
        loss, metrics = self._loss(*minibatch)
        self.optimizer.step(torch.autograd.grad(loss, self.optimizer.parameters))
        return metrics

    # Schedules and state

    def set_progress(self, fraction: float) -> None:
        """Tell the schedules how much of the training is done, in [0, 1]."""
        self.progress = min(max(float(fraction), 0.0), 1.0)

    def policy_state_dict(self) -> State:
        """Actor and observation statistics, by name."""
        return module_state(self.policy)

    def load_policy_state_dict(self, state: State) -> None:
        """Take back what `policy_state_dict` gave. Raises `CheckpointError` where it does not fit."""
        load_module_state(self.policy, state, "the residual policy")

    def state_dict(self) -> State:
        """All that makes the following steps the same, an unfinished rollout included. Not between `act` and `observe`."""
        return {
            "policy": self.policy_state_dict(),
            "critic": module_state(self.critic),
            "optimizer": self.optimizer.state_dict(),
            "reward_scaler": None if self.reward_scaler is None else module_state(self.reward_scaler),
            "noise": self.noise.state_dict(),
            "shuffle_generator": self._shuffle.get_state(),
            "progress": self.progress,
            "rollout": {name: tensor[: self._filled].clone() for name, tensor in self._rollout.items()} if self._filled else None,
        }

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave. Raises `CheckpointError` where it does not fit."""
        self.load_policy_state_dict(state["policy"])
        load_module_state(self.critic, state["critic"], "the critic")
        self.optimizer.load_state_dict(state["optimizer"])
        if self.reward_scaler is not None:
            load_module_state(self.reward_scaler, state["reward_scaler"] or {}, "the reward scaler")
        self.noise.load_state_dict(state["noise"])
        self._shuffle.set_state(state["shuffle_generator"].cpu())
        self.set_progress(state["progress"])
        rollout = state["rollout"] or {}
        self._filled = len(rollout["obs"]) if rollout else 0
        for name, tensor in rollout.items():
            self._rollout[name][: self._filled].copy_(tensor)
        self._acted = None
