"""A learner of another package that does not learn: its residual is the same for all joints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from residual_rl.registry import LearnerSpec
from residual_rl.types import Metrics, Obs, State, Transition


@dataclass(frozen=True)
class ConstantCfg:
    """Settings of the constant learner."""

    num_steps: int = 4
    """Steps per env between two updates."""
    push: float = 0.25
    """The residual action of every joint."""


class Constant(nn.Module):
    """The deployed policy."""

    def __init__(self, action_dim: int, push: float, device: torch.device):
        super().__init__()
        self.action = nn.Parameter(torch.full((action_dim,), push, device=device))

    def act(self, obs: Obs) -> Tensor:
        """The same action for all envs."""
        return self.action.expand(len(obs["base_action"]), -1)


class ConstantLearner:
    """Implements `types.Learner`."""

    def __init__(
        self,
        cfg: ConstantCfg,
        obs_space: Any,
        action_dim: int,
        num_envs: int,
        device: torch.device,
        seed: int,
    ):
        self.num_steps, self.num_envs, self.device, self.seed = cfg.num_steps, num_envs, device, seed
        self.policy = make_policy(cfg, obs_space, action_dim, device)
        self.seen = 0

    @torch.no_grad()
    def act(self, obs: Obs, deterministic: bool = False) -> Tensor:
        return self.policy.act(obs)

    def observe(self, transition: Transition) -> None:
        self.seen += len(transition.reward)

    def update(self) -> Metrics:
        return {"train/seen": float(self.seen)}

    def set_progress(self, fraction: float) -> None:
        pass

    def state_dict(self) -> State:
        return {"policy": self.policy_state_dict(), "seen": self.seen}

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        self.seen = state["seen"]

    def policy_state_dict(self) -> State:
        return {name: tensor.clone() for name, tensor in self.policy.state_dict().items()}

    def load_policy_state_dict(self, state: State) -> None:
        self.policy.load_state_dict(state)


def make_policy(cfg: ConstantCfg, obs_space: Any, action_dim: int, device: torch.device) -> Constant:
    """Implements `LearnerSpec.make_policy`."""
    return Constant(action_dim, cfg.push, device)


SPEC = LearnerSpec(
    id="constant",
    summary="pushes all joints alike",
    config=f"{__name__}:ConstantCfg",
    make=f"{__name__}:ConstantLearner",
    make_policy=f"{__name__}:make_policy",
    quick_overrides={"num_steps": 8},
)
