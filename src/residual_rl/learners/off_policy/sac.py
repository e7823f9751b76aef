"""Soft actor-critic (SAC) of a bounded residual."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from residual_rl.learners.common.optimizer import FlatAdam
from residual_rl.learners.off_policy.actors import GaussianActor
from residual_rl.learners.off_policy.batch import Batch
from residual_rl.learners.off_policy.config import SACCfg
from residual_rl.learners.off_policy.learner import OffPolicyLearner

if TYPE_CHECKING:
    from residual_rl.learners.common.networks import ObsSpace

__all__ = ["SAC", "SACCfg", "make_policy"]


def make_policy(
    cfg: SACCfg, obs_space: ObsSpace, action_dim: int, device: torch.device | str = "cpu", seed: int = 0
) -> GaussianActor:
    """Construct an untrained policy. `module_state.load_module_state` loads the weights of an exported one
    into it."""
    generator = torch.Generator().manual_seed(seed)
    return GaussianActor(
        cfg, obs_space, action_dim, generator, torch.device(device), cfg.init_std, cfg.log_std_range
    )


class Temperature(nn.Module):
    """The entropy weight, stored as its logarithm."""

    def __init__(self, start: float):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start)))


class SAC(OffPolicyLearner):
    """SAC with automatic temperature tuning, implementing `types.Learner`.

    Source: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018. Deviations: with n-step
    returns, only the value after the window includes the entropy; the temperature is updated once per actor
    step, with the log-densities of that step; exploration noise is correlated in time, while losses use
    independent samples.

    Args: as those of `ppo.PPO`.
    """

    actor_metrics = ("actor_loss", "entropy", "std", "temperature")

    def __init__(
        self,
        cfg: SACCfg,
        obs_space: ObsSpace,
        action_dim: int,
        num_envs: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        seeds = torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
        self.actor = self._make_actor(cfg, obs_space, action_dim, torch.device(device), seeds[0])
        super().__init__(cfg, self.actor, action_dim, num_envs, torch.device(device), seeds[1])
        self.target_entropy = cfg.target_entropy if cfg.target_entropy is not None else -float(action_dim)
        self.temperature = Temperature(cfg.temperature).to(self.device)
        self._tune_temperature = cfg.tune_temperature
        named = [("log_temperature", self.temperature.log)]
        self.temperature_optimizer = FlatAdam(named, cfg.temperature_learning_rate, math.inf, 1e-8)

    def _make_actor(
        self, cfg: SACCfg, obs_space: ObsSpace, action_dim: int, device: torch.device, seed: int
    ) -> GaussianActor:
        return make_policy(cfg, obs_space, action_dim, device, seed)

    def _explore(self, obs: Tensor, base_action: Tensor, noise: Tensor) -> Tensor:
        return self.actor.draw(obs, base_action, noise).action

    def _next_action(self, obs: Tensor, base_action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        drawn = self.actor.draw(obs, base_action, noise)
        return drawn.action, -self.temperature.log.exp() * drawn.log_prob

    def _actor_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """`mean(share · temperature · log_prob - value)`. The mean entropy, second of the metrics, is used to
        tune the temperature. It is weighted by the share too: what does not act needs no entropy."""
        drawn = self.actor.draw(batch.obs, batch.base_action, batch.actor_noise)
        temperature = self.temperature.log.detach().exp()
        log_prob = batch.share * drawn.log_prob
        loss = (temperature * log_prob - self._value_for_actor(batch, drawn.action)).mean()
        # without any share, an entropy at its target, which leaves the temperature unchanged
        total = batch.share.sum()
        entropy = torch.where(total > 0.0, -log_prob.sum() / total.clamp(min=1e-6), self.target_entropy)
        std = (batch.share[:, None] * drawn.std).sum() / (total.clamp(min=1e-6) * drawn.std.shape[1])
        metrics = torch.stack([loss, entropy, std, temperature]).detach()
        return loss, metrics

    def _actor_step(self, *piece: Tensor) -> Tensor:
        metrics = super()._actor_step(*piece)
        if self._tune_temperature:
            # Gradient of log_temperature · (entropy - target_entropy): an entropy below the target raises
            # the temperature
            self.temperature_optimizer.step([metrics[1] - self.target_entropy])
        return metrics

    def _optimizers(self) -> dict[str, FlatAdam]:
        return super()._optimizers() | {"temperature": self.temperature_optimizer}

    def _modules(self) -> dict[str, nn.Module]:
        return super()._modules() | {"temperature": self.temperature}
