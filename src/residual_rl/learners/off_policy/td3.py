"""Twin delayed deep deterministic policy gradient of a bounded residual."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from residual_rl.learners.common.ema import soft_update
from residual_rl.learners.off_policy.actors import DeterministicActor
from residual_rl.learners.off_policy.batch import Batch
from residual_rl.learners.off_policy.config import TD3Cfg
from residual_rl.learners.off_policy.learner import OffPolicyLearner

if TYPE_CHECKING:
    from residual_rl.learners.common.networks import ObsSpace

__all__ = ["TD3", "TD3Cfg", "make_policy"]


def make_policy(cfg: TD3Cfg, obs_space: ObsSpace, action_dim: int, device: torch.device | str = "cpu", seed: int = 0) -> DeterministicActor:
    """The policy that `cfg` describes, fresh; `networks.load_module_state` gives it the weights of an exported one."""
    return DeterministicActor(cfg, obs_space, action_dim, torch.Generator().manual_seed(seed), torch.device(device))


class TD3(OffPolicyLearner):
    """TD3 (Fujimoto et al., "Addressing Function Approximation Error in Actor-Critic Methods", 2018), implementing `types.Learner`.

    Deviations: exploration noise is correlated in time; the target critics follow in each gradient step, the target actor in each of the
    actor's; the actor climbs what `actor_value` says instead of the first critic.
    """

    def __init__(self, cfg: TD3Cfg, obs_space: ObsSpace, action_dim: int, num_envs: int, device: torch.device | str = "cpu", seed: int = 0):
        seeds = torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
        policy = make_policy(cfg, obs_space, action_dim, device, seeds[0])
        self.td3 = cfg
        self.target_actor = copy.deepcopy(policy).requires_grad_(False)
        super().__init__(cfg, policy, action_dim, num_envs, torch.device(device), seeds[1])

    def _explore(self, obs: Tensor, base_action: Tensor, noise: Tensor) -> Tensor:
        return torch.add(self.policy.mean(obs, base_action), noise, alpha=self.td3.exploration_std).clamp(-1.0, 1.0)

    def _next_action(self, obs: Tensor, base_action: Tensor, noise: Tensor) -> tuple[Tensor, float]:
        clip = self.td3.target_noise_clip
        noise = (self.td3.target_noise * noise).clamp(-clip, clip)
        return (self.target_actor.mean(obs, base_action) + noise).clamp(-1.0, 1.0), 0.0

    def _actor_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """`-mean(value)` of the deterministic action."""
        loss = -self._value_for_actor(batch, self.policy.mean(batch.obs, batch.base_action)).mean()
        return loss, loss.detach()[None]

    def _actor_step(self, *piece: Tensor) -> Tensor:
        figures = super()._actor_step(*piece)
        soft_update(self.target_actor.net, self.policy.net, self.cfg.tau)
        return figures

    def _modules(self) -> dict[str, nn.Module]:
        return super()._modules() | {"target_actor": self.target_actor}
