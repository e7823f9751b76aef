"""Proximal policy optimisation of a bounded residual."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from residual_rl.errors import CheckpointError
from residual_rl.learners.common.augmentation import random_shift
from residual_rl.learners.common.compilation import compiled, cuda_graphed
from residual_rl.learners.common.exploration_noise import CorrelatedNoise, Noise
from residual_rl.learners.common.networks import MLP, Perception, ResidualPolicy, default_obs_keys, images_of
from residual_rl.learners.common.normalizers import RewardScaler
from residual_rl.learners.common.optimizer import FlatAdam
from residual_rl.learners.common.returns import gae, without_bootstrap
from residual_rl.learners.ppo.config import PPOCfg
from residual_rl.types import Metrics, Obs, State, Transition
from residual_rl.utils.module_state import load_module_state, module_state

if TYPE_CHECKING:
    from residual_rl.learners.common.networks import ObsSpace

__all__ = ["PPO", "PPOCfg", "make_policy"]

_HALF_LOG_2PI_E = 1.4189385332046727
_MINIBATCH_METRICS = ("approx_kl", "clip_fraction", "policy_gradient_loss", "value_loss", "entropy_loss", "loss")


def make_policy(cfg: PPOCfg, obs_space: ObsSpace, action_dim: int, device: torch.device | str = "cpu", seed: int = 0) -> ResidualPolicy:
    """The policy that `cfg` describes, fresh; `networks.load_module_state` gives it the weights of an exported one."""
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


class PPO:
    """PPO with a clipped surrogate (Schulman et al., "Proximal Policy Optimization Algorithms", 2017), implementing `types.Learner`.

    Deviations and choices:

    - The critic sleeps while steps are collected: values of observations and of true next observations are computed in one batch
      when an update starts.
    - Observation statistics take in a rollout when its update starts and stay as they are until the next. The old log-probabilities
      are those of the noise that was drawn, so they are exact whatever becomes of the statistics.
    - Advantages are normalised over the rollout, not over each minibatch.
    - With correlated noise the default likelihood is that of each step's marginal N(mean, std), as in Hollenstein et al., "Colored
      Noise in PPO", AAAI 2024: exact for white noise, an approximation otherwise. `noise_likelihood="conditional"` is exact, for a
      policy that takes the noise before the step as given.
    - Images are kept as uint8. Policy and critic share the encoder where they see the same observations; else each has its own.
    - Images are shifted once, when the policy acts on them, and are learned from as they were then, as in Laskin et al., "Reinforcement
      Learning with Augmented Data", 2020: another shift in each epoch would make the ratio of probabilities one of two observations.
    """

    def __init__(self, cfg: PPOCfg, obs_space: ObsSpace, action_dim: int, num_envs: int, device: torch.device | str = "cpu", seed: int = 0):
        if cfg.obs_keys is None:
            cfg = dataclasses.replace(cfg, obs_keys=default_obs_keys(obs_space))
        self.cfg, self.num_envs, self.num_steps, self.device = cfg, num_envs, cfg.num_steps, torch.device(device)
        self.num_minibatches, self.minibatch_size = cfg.minibatches(num_envs)
        self.progress = 0.0

        seeder = torch.Generator().manual_seed(seed)
        seeds = torch.randint(2**62, (4,), generator=seeder).tolist()
        self.policy = make_policy(cfg, obs_space, action_dim, self.device, seeds[0])
        generator = torch.Generator().manual_seed(seeds[1])
        self._critic_sees: Perception = self.policy
        if cfg.critic_obs_keys not in (None, cfg.obs_keys):
            settings = cfg.normalize_obs, cfg.image_features, generator, self.device
            self._critic_sees = Perception(cfg.critic_obs_keys or (), obs_space, *settings)
        self.critic = MLP((self._critic_sees.num_features, *cfg.hidden_sizes, 1), cfg.activation, generator).to(self.device)
        self._image_keys = tuple(dict.fromkeys(self.policy.image_keys + self._critic_sees.image_keys))
        self._shifts = torch.Generator(self.device).manual_seed(int(torch.randint(2**62, (), generator=seeder)))
        self.reward_scaler = RewardScaler(num_envs, cfg.gamma, device=self.device) if cfg.normalize_reward else None
        self.noise = CorrelatedNoise(num_envs, action_dim, cfg.noise_correlation, seeds[2], self.device)
        self._shuffle = torch.Generator(self.device).manual_seed(seeds[3])
        self.policy.log_std.requires_grad_(cfg.final_std is None)
        named = [*self.policy.named_parameters(), *((f"critic.{name}", p) for name, p in self.critic.named_parameters())]
        if self._critic_sees is not self.policy:
            named += [(f"critic_sees.{name}", p) for name, p in self._critic_sees.named_parameters()]
        named = [(name, p) for name, p in named if p.requires_grad]
        self.optimizer = FlatAdam(named, cfg.learning_rate, cfg.max_grad_norm)
        self._fast_loss = compiled(self._loss, cfg.compile)
        self._fast_step = cuda_graphed(self._gradient_step, cfg.cudagraphs, self.device, cfg.compile)

        spaces: Any = getattr(obs_space, "spaces", obs_space)

        def storage(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(cfg.num_steps, num_envs, *shape, dtype=dtype, device=self.device)

        obs_dim, critic_obs_dim = self.policy.obs_vector.size, self._critic_sees.obs_vector.size
        self._rollout = {"obs": storage(obs_dim), "next_obs": storage(critic_obs_dim)}  # values alone need the next observation
        if self._critic_sees is not self.policy:
            self._rollout["critic_obs"] = storage(critic_obs_dim)
        for prefix, keys in (("image.", self._image_keys), ("next_image.", self._critic_sees.image_keys)):
            self._rollout |= {prefix + key: storage(*spaces[key].shape, dtype=torch.uint8) for key in keys}
        self._rollout |= {"raw_action": storage(action_dim), "noise": storage(action_dim)}
        self._rollout |= {"reward": storage(), "terminated": storage(dtype=torch.bool), "ended": storage(dtype=torch.bool)}
        self._conditional = cfg.noise_likelihood == "conditional" and cfg.noise_correlation > 0.0
        if self._conditional:
            self._rollout |= {"noise_shift": storage(action_dim), "noise_spread": storage(1)}
        self._filled = 0
        self._acted: tuple[Tensor, Noise, dict[str, Tensor]] | None = None

    # Collecting

    @torch.no_grad()
    def act(self, obs: Obs, deterministic: bool = False) -> Tensor:
        """The residual action [B, A] in [-1, 1]; with exploration noise unless `deterministic`, and then to be followed by `observe`."""
        if deterministic:
            return self.policy.act(obs)
        noise, images = self.noise.sample(), self._shifted(obs, self._image_keys)
        raw = torch.addcmul(self.policy.mean_of(obs, images), self.policy.log_std.exp(), noise.value)
        self._acted = raw, noise, images
        return raw.clamp(-1.0, 1.0)

    def _shifted(self, obs: Obs, keys: Sequence[str]) -> dict[str, Tensor]:
        """The images [B, H, W, C] uint8 of `keys` as the networks see them in training."""
        return {key: random_shift(image, self.cfg.random_shift, self._shifts) for key, image in images_of(obs, keys, self.device).items()}

    @torch.no_grad()
    def observe(self, transition: Transition) -> None:
        """Store the step that followed the last `act`."""
        if self._acted is None:
            raise RuntimeError("observe() must follow a non-deterministic act()")
        if self._filled == self.num_steps:
            raise RuntimeError(f"the rollout of {self.num_steps} steps is full: call update()")
        (raw, noise, images), self._acted = self._acted, None
        row = {name: tensor[self._filled] for name, tensor in self._rollout.items()}
        self.policy.obs_vector(transition.obs, self.device, out=row["obs"])
        self._critic_sees.obs_vector(transition.next_obs, self.device, out=row["next_obs"])
        if "critic_obs" in row:
            self._critic_sees.obs_vector(transition.obs, self.device, out=row["critic_obs"])
        for key, image in images.items():
            row[f"image.{key}"].copy_(image)
        for key, image in self._shifted(transition.next_obs, self._critic_sees.image_keys).items():
            row[f"next_image.{key}"].copy_(image)
        row["raw_action"].copy_(raw)
        row["noise"].copy_(noise.value)
        if self._conditional:
            row["noise_shift"].copy_(noise.shift)
            row["noise_spread"].copy_(noise.spread)
        row["reward"].copy_(transition.reward)
        row["terminated"].copy_(transition.terminated)
        torch.logical_or(row["terminated"], transition.truncated.to(self.device), out=row["ended"])
        self.noise.restart(row["ended"])
        self._filled += 1

    # Learning

    def update(self) -> Metrics:
        """Learn from the `num_steps` collected steps. Raises `NonFiniteError` before anything that is not finite reaches a weight."""
        if self._filled != self.num_steps:
            raise RuntimeError(f"update() needs {self.num_steps} observed steps, there are {self._filled}")
        learning_rate = self.cfg.learning_rate
        if self.cfg.learning_rate_schedule == "linear":
            learning_rate *= 1.0 - self.progress
        self.optimizer.learning_rate.fill_(learning_rate)
        batch, explained_variance = self._prepare()
        sums, steps = torch.zeros(len(_MINIBATCH_METRICS), device=self.device), 0
        for _ in range(self.cfg.num_epochs):
            epoch = self._epoch(batch)
            sums, steps = sums + epoch, steps + self.num_minibatches
            if self.cfg.target_kl is not None and epoch[0].item() / self.num_minibatches > self.cfg.target_kl:
                break
        self.optimizer.check()
        self._filled, self._acted = 0, None
        metrics = {f"train/{name}": value for name, value in zip(_MINIBATCH_METRICS, (sums / steps).tolist(), strict=True)}
        metrics["train/explained_variance"] = explained_variance.item()
        metrics["train/learning_rate"] = learning_rate
        metrics["train/std"] = self.policy.log_std.exp().mean().item()
        return metrics

    @torch.no_grad()
    def _prepare(self) -> tuple[list[Tensor], Tensor]:
        """Flat [T * B, …] tensors in the order in which `_loss` takes them, and the explained variance of the old values."""
        rollout, shape, clip_range = self._rollout, (self.num_steps, self.num_envs), self.cfg.clip_range
        sees = self._critic_sees
        if self.policy.normalizer is not None:
            self.policy.normalizer.update(rollout["obs"])
        if sees is not self.policy and sees.normalizer is not None:
            sees.normalizer.update(rollout["critic_obs"])
        reward = rollout["reward"] if self.reward_scaler is None else self.reward_scaler(rollout["reward"], rollout["ended"])
        obs = self.policy.normalize(rollout["obs"].flatten(0, 1))
        critic_obs = obs if sees is self.policy else sees.normalize(rollout["critic_obs"].flatten(0, 1))
        next_obs = sees.normalize(rollout["next_obs"].flatten(0, 1))
        value, next_value = (v.view(shape) for v in self._values(critic_obs, next_obs).chunk(2))
        stops = without_bootstrap(rollout["terminated"], rollout["ended"], self.cfg.bootstrap_at_done)
        advantage, target = gae(reward, value, next_value, stops, rollout["ended"], self.cfg.gamma, self.cfg.gae_lambda)
        explained_variance = 1.0 - (target - value).var() / (target.var() + 1e-8)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        # min(ratio * A, clip(ratio) * A) = A * clamp(ratio, low, high), as only one of the bounds can matter, by the sign of A
        low = torch.where(advantage < 0.0, 1.0 - clip_range, 0.0)
        high = torch.where(advantage < 0.0, torch.inf, 1.0 + clip_range)

        given = [rollout["noise_shift"], rollout["noise_spread"]] if self._conditional else []
        old_log_prob = self._log_prob(rollout["noise"], given)
        batch = [rollout["raw_action"], old_log_prob, advantage, low, high, target, *given]
        images = [rollout[f"image.{key}"].flatten(0, 1) for key in self._image_keys]
        others = [] if sees is self.policy else [critic_obs]
        return [obs, *(tensor.flatten(0, 1) for tensor in batch), *others, *images], explained_variance

    def _values(self, obs: Tensor, next_obs: Tensor) -> Tensor:
        """The critic's values [2 * T * B, 1] of the observations of the rollout and of the next ones, whose vectors are given.

        With images it takes as many at once as a gradient step does: their features need far more memory than the images.
        """
        sees, size = self._critic_sees, self.minibatch_size
        if sees.encoder is None:
            return self.critic(torch.cat([obs, next_obs]))
        values = []
        for vectors, prefix in ((obs, "image."), (next_obs, "next_image.")):
            images = {key: self._rollout[prefix + key].flatten(0, 1).split(size) for key in sees.image_keys}
            for i, piece in enumerate(vectors.split(size)):
                values.append(self.critic(sees.features(piece, {key: pieces[i] for key, pieces in images.items()})))
        return torch.cat(values)

    def _epoch(self, batch: list[Tensor]) -> Tensor:
        """A gradient step for each minibatch of a new shuffle; returns the sums of their metrics."""
        order = torch.randperm(len(batch[0]), generator=self._shuffle, device=self.device)
        small, images = batch[: len(batch) - len(self._image_keys)], batch[len(batch) - len(self._image_keys) :]
        rows = order.split(self.minibatch_size)
        pieces = [tensor.index_select(0, order).split(self.minibatch_size) for tensor in small]
        sums = torch.zeros(len(_MINIBATCH_METRICS), device=self.device)
        for i in range(self.num_minibatches):
            sums += self._fast_step(*(piece[i] for piece in pieces), *(image.index_select(0, rows[i]) for image in images))
            if self.device.type == "cpu":
                self.optimizer.check()
        return sums

    def _log_prob(self, noise: Tensor, given: list[Tensor]) -> Tensor:
        """Log-density [...] of the action that `noise` [..., A] makes, up to a constant, which cancels in ratios.

        `given` is empty, or the shift and the spread of the noise that the noise before it implies.
        """
        white = (noise - given[0]) / given[1] if given else noise
        return -0.5 * (white * white).sum(-1) - self.policy.log_std.sum()

    def _loss(self, *minibatch: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a minibatch, as `_prepare` orders it, and its metrics in the order of `_MINIBATCH_METRICS`."""
        obs, raw_action, old_log_prob, advantage, low, high, target, *rest = minibatch
        num_given = 2 if self._conditional else 0
        given, rest = rest[:num_given], rest[num_given:]
        images = dict(zip(self._image_keys, rest[len(rest) - len(self._image_keys) :], strict=True))
        features = critic_features = self.policy.features(obs, images)
        if self._critic_sees is not self.policy:
            critic_features = self._critic_sees.features(rest[0], images)
        log_std = self.policy.log_std
        noise = (raw_action - self.policy.mean(features)) * (-log_std).exp()
        log_ratio = self._log_prob(noise, given) - old_log_prob
        ratio = log_ratio.exp()
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

    # Schedules and state

    def set_progress(self, fraction: float) -> None:
        """Tell the schedules how much of the training is done, in [0, 1]."""
        self.progress = min(max(float(fraction), 0.0), 1.0)
        if self.cfg.final_std is not None:
            std = self.cfg.init_std + self.progress * (self.cfg.final_std - self.cfg.init_std)
            self.policy.log_std.data.fill_(math.log(std))

    def policy_state_dict(self) -> State:
        """Actor and observation statistics, by name."""
        return module_state(self.policy)

    def load_policy_state_dict(self, state: State) -> None:
        """Take back what `policy_state_dict` gave. Raises `CheckpointError` where it does not fit."""
        load_module_state(self.policy, state, "the residual policy")

    def state_dict(self) -> State:
        """All that makes the following steps the same, an unfinished rollout included. Not between `act` and `observe`."""
        critic = module_state(self.critic)
        if self._critic_sees is not self.policy:
            critic |= {f"sees.{name}": tensor for name, tensor in module_state(self._critic_sees).items()}
        generators = {"noise": self.noise.generator.get_state(), "shuffle": self._shuffle.get_state()}
        if self._image_keys:
            generators["shifts"] = self._shifts.get_state()
        return {
            "policy": self.policy_state_dict(),
            "critic": critic,
            "optimizer": self.optimizer.state_dict(),
            "reward_scaler": module_state(self.reward_scaler) if self.reward_scaler is not None else {},
            "noise": module_state(self.noise),
            "generators": generators,
            "progress": self.progress,
            "rollout": {name: tensor[: self._filled].clone() for name, tensor in self._rollout.items()} if self._filled else {},
        }

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave. Raises `CheckpointError` where it does not fit."""
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise CheckpointError(f"the learner's state lacks {', '.join(missing)}: it is not one of PPO")
        if bool(state["reward_scaler"]) != self.cfg.normalize_reward:
            raise CheckpointError(f"the learner's state was saved with normalize_reward {bool(state['reward_scaler'])}; set it so")
        load_module_state(self.noise, state["noise"], "the exploration noise")
        if self.reward_scaler is not None:
            load_module_state(self.reward_scaler, state["reward_scaler"], "the reward scaler")
        self.load_policy_state_dict(state["policy"])
        sees = {name.removeprefix("sees."): tensor for name, tensor in state["critic"].items() if name.startswith("sees.")}
        if sees or self._critic_sees is not self.policy:
            load_module_state(self._critic_sees, sees, "what the critic sees")
        load_module_state(self.critic, {name: t for name, t in state["critic"].items() if not name.startswith("sees.")}, "the critic")
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.generator.set_state(state["generators"]["noise"].cpu())
        self._shuffle.set_state(state["generators"]["shuffle"].cpu())
        self.set_progress(state["progress"])
        if self._image_keys:
            self._shifts.set_state(state["generators"]["shifts"].cpu())
        self._filled, self._acted = len(state["rollout"].get("reward", ())), None
        for name, tensor in state["rollout"].items():
            self._rollout[name][: self._filled].copy_(tensor)
