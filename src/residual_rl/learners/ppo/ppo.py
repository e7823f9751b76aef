"""Proximal policy optimisation (PPO) of a bounded residual."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from residual_rl.learners.common.augmentation import random_shift
from residual_rl.learners.common.compilation import compiled, cuda_graphed
from residual_rl.learners.common.exploration_noise import CorrelatedNoise, Noise
from residual_rl.learners.common.networks import MLP, Perception, ResidualPolicy, default_obs_keys, images_of
from residual_rl.learners.common.normalizers import RewardScaler
from residual_rl.learners.common.optimizer import FlatAdam
from residual_rl.learners.common.returns import bootstrap_mask, gae
from residual_rl.learners.ppo.config import PPOCfg
from residual_rl.learners.ppo.resumable_state import ResumableState
from residual_rl.learners.ppo.rollout import make_rollout
from residual_rl.types import Metrics, Obs, Transition

if TYPE_CHECKING:
    from residual_rl.learners.common.networks import ObsSpace

__all__ = ["PPO", "PPOCfg", "make_policy"]

_HALF_LOG_2PI_E = 1.4189385332046727
_MINIBATCH_METRICS = (
    "approx_kl",
    "clip_fraction",
    "policy_gradient_loss",
    "value_loss",
    "entropy_loss",
    "loss",
)


def make_policy(
    cfg: PPOCfg, obs_space: ObsSpace, action_dim: int, device: torch.device | str = "cpu", seed: int = 0
) -> ResidualPolicy:
    """Construct an untrained policy. `module_state.load_module_state` loads the weights of an exported one
    into it."""
    return ResidualPolicy(
        obs_keys=default_obs_keys(obs_space) if cfg.obs_keys is None else cfg.obs_keys,
        obs_space=obs_space,
        action_dim=action_dim,
        hidden_sizes=cfg.hidden_sizes,
        activation=cfg.activation,
        init_std=cfg.init_std,
        normalize_obs=cfg.normalize_obs,
        image_features=cfg.image_features,
        generator=torch.Generator().manual_seed(seed),
        device=torch.device(device),
    )


class PPO(ResumableState):
    """PPO with a clipped surrogate (Schulman et al., "Proximal Policy Optimization Algorithms", 2017),
    implementing `types.Learner`.

    Deviations and choices:

    - Values are not computed while steps are collected: an update starts with one batch of values of all
      observations and true next observations.
    - Observation statistics are updated with a rollout at the start of its update and then kept until the
      next one. Old log-probabilities are computed from the stored noise, so they are exact although the
      statistics have changed. Learning with the statistics of acting showed no significant difference
      (docs/results).
    - Advantages are normalised over the rollout, not over each minibatch.
    - With correlated noise, the default likelihood is that of each step's marginal N(mean, std), as in
      Hollenstein et al., "Colored Noise in PPO", AAAI 2024: exact for white noise, an approximation
      otherwise. `noise_likelihood="conditional"` is exact for a policy conditioned on the earlier noise.
    - Images are stored as uint8. Policy and critic share the image encoder if they have the same
      observations.
    - Images are shifted once, when the policy acts on them, and the shifted images are used for learning, as
      in Laskin et al., "Reinforcement Learning with Augmented Data", 2020. A new shift in each epoch would
      make the probability ratio compare two different observations.

    Args:
        cfg: the settings.
        obs_space: space of a single env's observations, including `base_action`.
        action_dim: A.
        num_envs: B.
        device: device to compute on.
        seed: seed of the weights, the exploration and the minibatches.
    """

    default_obs_keys = staticmethod(default_obs_keys)

    def __init__(
        self,
        cfg: PPOCfg,
        obs_space: ObsSpace,
        action_dim: int,
        num_envs: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        # Settings
        if cfg.obs_keys is None:
            cfg = dataclasses.replace(cfg, obs_keys=default_obs_keys(obs_space))
        self.cfg = cfg
        self.num_envs = num_envs
        self.num_steps = cfg.num_steps
        self.device = torch.device(device)
        self.num_minibatches, self.minibatch_size = cfg.minibatches(num_envs)
        self.progress = 0.0

        # Policy and critic
        seeder = torch.Generator().manual_seed(seed)
        seeds = torch.randint(2**62, (4,), generator=seeder).tolist()
        self.policy = make_policy(cfg, obs_space, action_dim, self.device, seeds[0])
        generator = torch.Generator().manual_seed(seeds[1])
        self.critic_perception: Perception = self.policy
        if cfg.critic_obs_keys not in (None, cfg.obs_keys):
            settings = cfg.normalize_obs, cfg.image_features, generator, self.device
            self.critic_perception = Perception(cfg.critic_obs_keys or (), obs_space, *settings)
        self.critic = MLP(
            (self.critic_perception.num_features, *cfg.hidden_sizes, 1), cfg.activation, generator
        ).to(self.device)
        self._image_keys = tuple(dict.fromkeys(self.policy.image_keys + self.critic_perception.image_keys))

        # Noise, augmentation and reward scaling
        self._shift_rng = torch.Generator(self.device).manual_seed(
            int(torch.randint(2**62, (), generator=seeder))
        )
        self.reward_scaler = (
            RewardScaler(num_envs, cfg.gamma, device=self.device) if cfg.normalize_reward else None
        )
        self.noise = CorrelatedNoise(num_envs, action_dim, cfg.noise_correlation, seeds[2], self.device)
        self._shuffle_rng = torch.Generator(self.device).manual_seed(seeds[3])

        # Optimiser
        self.policy.log_std.requires_grad_(cfg.final_std is None)
        named = [
            *self.policy.named_parameters(),
            *((f"critic.{name}", p) for name, p in self.critic.named_parameters()),
        ]
        if self.critic_perception is not self.policy:
            named += [
                (f"critic_perception.{name}", p) for name, p in self.critic_perception.named_parameters()
            ]
        named = [(name, p) for name, p in named if p.requires_grad]
        self.optimizer = FlatAdam(named, cfg.learning_rate, cfg.max_grad_norm)
        self._fast_loss = compiled(self._loss, cfg.compile)
        self._fast_step = cuda_graphed(self._gradient_step, cfg.cudagraphs, self.device, cfg.compile)

        # Rollout
        self._conditional = cfg.noise_likelihood == "conditional" and cfg.noise_correlation > 0.0
        self._rollout = make_rollout(
            shape=(cfg.num_steps, num_envs),
            obs_space=obs_space,
            policy=self.policy,
            critic_perception=self.critic_perception,
            action_dim=action_dim,
            conditional_noise=self._conditional,
            device=self.device,
        )
        self._filled = 0
        self._last_act: tuple[Tensor, Noise, dict[str, Tensor]] | None = None

    # --- collecting -----------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, obs: Obs, deterministic: bool = False) -> Tensor:
        """The residual action [B, A] in [-1, 1].

        Unless `deterministic`, it includes exploration noise, and `observe` must follow.
        """
        if deterministic:
            return self.policy.act(obs)
        noise = self.noise.sample()
        images = self._shifted(obs, self._image_keys)
        raw = torch.addcmul(self.policy.mean_of(obs, images), self.policy.log_std.exp(), noise.value)
        self._last_act = raw, noise, images
        return raw.clamp(-1.0, 1.0)

    def _shifted(self, obs: Obs, keys: Sequence[str]) -> dict[str, Tensor]:
        """The images [B, H, W, C] uint8 of `keys` with the random shifts of training."""
        images = images_of(obs, keys, self.device)
        return {
            key: random_shift(image, self.cfg.random_shift, self._shift_rng) for key, image in images.items()
        }

    @torch.no_grad()
    def observe(self, transition: Transition) -> None:
        """Store the step that followed the last `act`."""
        if self._last_act is None:
            raise RuntimeError("observe() must follow a non-deterministic act()")
        if self._filled == self.num_steps:
            raise RuntimeError(f"the rollout of {self.num_steps} steps is full: call update()")
        (raw, noise, images), self._last_act = self._last_act, None
        row = {name: tensor[self._filled] for name, tensor in self._rollout.items()}
        # Observations
        self.policy.obs_vector(transition.obs, self.device, out=row["obs"])
        self.critic_perception.obs_vector(transition.next_obs, self.device, out=row["next_obs"])
        if "critic_obs" in row:
            self.critic_perception.obs_vector(transition.obs, self.device, out=row["critic_obs"])
        for key, image in images.items():
            row[f"image.{key}"].copy_(image)
        for key, image in self._shifted(transition.next_obs, self.critic_perception.image_keys).items():
            row[f"next_image.{key}"].copy_(image)
        # Action and noise
        row["raw_action"].copy_(raw)
        row["noise"].copy_(noise.value)
        if self._conditional:
            row["noise_shift"].copy_(noise.shift)
            row["noise_spread"].copy_(noise.spread)
        # Reward and end of the episode
        row["reward"].copy_(transition.reward)
        row["terminated"].copy_(transition.terminated)
        torch.logical_or(row["terminated"], transition.truncated.to(self.device), out=row["ended"])
        self.noise.restart(row["ended"])
        self._filled += 1

    # --- learning -------------------------------------------------------------------------------------

    def update(self) -> Metrics:
        """Learn from the `num_steps` collected steps.

        Raises `NonFiniteError` if a sample or gradient is not finite; the weights then stay as they were.
        """
        if self._filled != self.num_steps:
            raise RuntimeError(
                f"update() needs {self.num_steps} observed steps, but there are {self._filled}"
            )
        # Learning rate
        learning_rate = self.cfg.learning_rate
        if self.cfg.learning_rate_schedule == "linear":
            learning_rate *= 1.0 - self.progress
        self.optimizer.learning_rate.fill_(learning_rate)
        # Epochs
        batch, explained_variance = self._prepare()
        sums = torch.zeros(len(_MINIBATCH_METRICS), device=self.device)
        steps = 0
        for _ in range(self.cfg.num_epochs):
            epoch = self._epoch(batch)
            sums = sums + epoch
            steps += self.num_minibatches
            if self.cfg.target_kl is not None and epoch[0].item() / self.num_minibatches > self.cfg.target_kl:
                break
        self.optimizer.raise_if_nonfinite()
        self._filled = 0
        self._last_act = None
        # Metrics
        means = (sums / steps).tolist()
        metrics = {f"train/{name}": value for name, value in zip(_MINIBATCH_METRICS, means, strict=True)}
        metrics["train/explained_variance"] = explained_variance.item()
        metrics["train/learning_rate"] = learning_rate
        metrics["train/std"] = self.policy.log_std.exp().mean().item()
        return metrics

    @torch.no_grad()
    def _prepare(self) -> tuple[list[Tensor], Tensor]:
        """The arguments of `_loss` as flat tensors [T * B, …], and the explained variance of the old
        values."""
        rollout = self._rollout
        shape = (self.num_steps, self.num_envs)
        clip_range = self.cfg.clip_range
        perception = self.critic_perception
        # Normalisation
        if self.policy.normalizer is not None:
            self.policy.normalizer.update(rollout["obs"])
        if perception is not self.policy and perception.normalizer is not None:
            perception.normalizer.update(rollout["critic_obs"])
        reward = rollout["reward"]
        if self.reward_scaler is not None:
            reward = self.reward_scaler(reward, rollout["ended"])
        obs = self.policy.normalize(rollout["obs"].flatten(0, 1))
        critic_obs = (
            obs if perception is self.policy else perception.normalize(rollout["critic_obs"].flatten(0, 1))
        )
        next_obs = perception.normalize(rollout["next_obs"].flatten(0, 1))
        # Advantages and value targets
        value, next_value = (v.view(shape) for v in self._values(critic_obs, next_obs).chunk(2))
        bootstrap = bootstrap_mask(rollout["terminated"], rollout["ended"], self.cfg.bootstrap_at_done)
        advantage, target = gae(
            reward, value, next_value, bootstrap, rollout["ended"], self.cfg.gamma, self.cfg.gae_lambda
        )
        explained_variance = 1.0 - (target - value).var() / (target.var() + 1e-8)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        # min(ratio * A, clip(ratio) * A) = A * clamp(ratio, low, high), with bounds that depend on the sign
        # of A
        low = torch.where(advantage < 0.0, 1.0 - clip_range, 0.0)
        high = torch.where(advantage < 0.0, torch.inf, 1.0 + clip_range)

        # The old policy's log-probabilities, and the order of `_loss`
        given = [rollout["noise_shift"], rollout["noise_spread"]] if self._conditional else []
        old_log_prob = self._log_prob(rollout["noise"], given)
        batch = [rollout["raw_action"], old_log_prob, advantage, low, high, target, *given]
        images = [rollout[f"image.{key}"].flatten(0, 1) for key in self._image_keys]
        others = [] if perception is self.policy else [critic_obs]
        return [obs, *(tensor.flatten(0, 1) for tensor in batch), *others, *images], explained_variance

    def _values(self, obs: Tensor, next_obs: Tensor) -> Tensor:
        """The critic's values [2 * T * B, 1] of the rollout's observations and next observations, given as
        vectors.

        Images are processed in minibatches, since their features need far more memory than the images
        themselves.
        """
        perception = self.critic_perception
        size = self.minibatch_size
        if perception.encoder is None:
            return self.critic(torch.cat([obs, next_obs]))
        values = []
        for vectors, prefix in ((obs, "image."), (next_obs, "next_image.")):
            images = {
                key: self._rollout[prefix + key].flatten(0, 1).split(size) for key in perception.image_keys
            }
            for i, piece in enumerate(vectors.split(size)):
                values.append(
                    self.critic(
                        perception.features(piece, {key: pieces[i] for key, pieces in images.items()})
                    )
                )
        return torch.cat(values)

    def _epoch(self, batch: list[Tensor]) -> Tensor:
        """Shuffle the batch, take a gradient step on each minibatch, and return the sums of their metrics."""
        order = torch.randperm(len(batch[0]), generator=self._shuffle_rng, device=self.device)
        num_vectors = len(batch) - len(self._image_keys)
        small, images = batch[:num_vectors], batch[num_vectors:]
        rows = order.split(self.minibatch_size)
        pieces = [tensor.index_select(0, order).split(self.minibatch_size) for tensor in small]
        sums = torch.zeros(len(_MINIBATCH_METRICS), device=self.device)
        for i in range(self.num_minibatches):
            sums += self._fast_step(
                *(piece[i] for piece in pieces), *(image.index_select(0, rows[i]) for image in images)
            )
            if self.device.type == "cpu":
                self.optimizer.raise_if_nonfinite()
        return sums

    def _log_prob(self, noise: Tensor, given: list[Tensor]) -> Tensor:
        """Log-density [...] of the action with noise `noise` [..., A], up to a constant that cancels in
        ratios.

        `given` is empty for the marginal likelihood, else the conditional mean and standard deviation of the
        noise.
        """
        white = (noise - given[0]) / given[1] if given else noise
        return -0.5 * (white * white).sum(-1) - self.policy.log_std.sum()

    def _loss(self, *minibatch: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a minibatch (tensors in the order of `_prepare`), and its metrics in the order of
        `_MINIBATCH_METRICS`."""
        obs, raw_action, old_log_prob, advantage, low, high, target, *rest = minibatch
        num_given = 2 if self._conditional else 0
        given, rest = rest[:num_given], rest[num_given:]
        images = dict(zip(self._image_keys, rest[len(rest) - len(self._image_keys) :], strict=True))
        # Probability ratio and value
        features = critic_features = self.policy.features(obs, images)
        if self.critic_perception is not self.policy:
            critic_features = self.critic_perception.features(rest[0], images)
        log_std = self.policy.log_std
        noise = (raw_action - self.policy.mean(features)) * (-log_std).exp()
        log_ratio = self._log_prob(noise, given) - old_log_prob
        ratio = log_ratio.exp()
        # Losses
        policy_loss = -torch.dot(advantage, ratio.clamp(low, high)) / len(advantage)
        value_loss = F.mse_loss(self.critic(critic_features).squeeze(-1), target)
        entropy_loss = -log_std.sum() - len(log_std) * _HALF_LOG_2PI_E
        loss = policy_loss + self.cfg.value_coef * value_loss
        if self.cfg.entropy_coef > 0.0:
            loss = loss + self.cfg.entropy_coef * entropy_loss
        with torch.no_grad():
            approx_kl = (ratio - 1.0 - log_ratio).mean()  # Schulman, "Approximating KL Divergence", 2020
            clip_fraction = ((ratio - 1.0).abs() > self.cfg.clip_range).float().mean()
            metrics = torch.stack([approx_kl, clip_fraction, policy_loss, value_loss, entropy_loss, loss])
        return loss, metrics

    def _gradient_step(self, *minibatch: Tensor) -> Tensor:
        loss, metrics = self._fast_loss(*minibatch)
        self.optimizer.step(torch.autograd.grad(loss, self.optimizer.parameters))
        return metrics
