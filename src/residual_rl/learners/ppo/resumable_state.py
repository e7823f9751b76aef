"""Schedules, and saving and restoring the training state of PPO."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from residual_rl.errors import CheckpointError
from residual_rl.learners.common.exploration_noise import CorrelatedNoise, Noise
from residual_rl.learners.common.networks import MLP, Perception, ResidualPolicy
from residual_rl.learners.common.normalizers import RewardScaler
from residual_rl.learners.common.optimizer import FlatAdam
from residual_rl.learners.ppo.config import PPOCfg
from residual_rl.types import State
from residual_rl.utils.module_state import load_module_state, module_state


class ResumableState:
    """The part of `PPO` that saves and restores its training state."""

    cfg: PPOCfg
    policy: ResidualPolicy
    critic: MLP
    critic_perception: Perception
    optimizer: FlatAdam
    noise: CorrelatedNoise
    reward_scaler: RewardScaler | None
    progress: float
    _image_keys: tuple[str, ...]
    _shift_rng: torch.Generator
    _shuffle_rng: torch.Generator
    _rollout: dict[str, Tensor]
    _filled: int
    _last_act: tuple[Tensor, Noise, dict[str, Tensor]] | None

    def set_progress(self, fraction: float) -> None:
        """Set the schedules to the finished fraction of training, in [0, 1]."""
        self.progress = min(max(float(fraction), 0.0), 1.0)
        if self.cfg.final_std is not None:
            std = self.cfg.init_std + self.progress * (self.cfg.final_std - self.cfg.init_std)
            self.policy.log_std.data.fill_(math.log(std))

    def policy_state_dict(self) -> State:
        """Actor and observation statistics, by name."""
        return module_state(self.policy)

    def load_policy_state_dict(self, state: State) -> None:
        """Restore a state returned by `policy_state_dict`. Raises `CheckpointError` if it does not match."""
        load_module_state(self.policy, state, "the residual policy")

    def state_dict(self) -> State:
        """The state needed to resume exactly, including an unfinished rollout. Not valid between `act` and
        `observe`."""
        critic = module_state(self.critic)
        if self.critic_perception is not self.policy:
            critic |= {
                f"perception.{name}": tensor for name, tensor in module_state(self.critic_perception).items()
            }
        generators = {"noise": self.noise.generator.get_state(), "shuffle": self._shuffle_rng.get_state()}
        if self._image_keys:
            generators["shift"] = self._shift_rng.get_state()
        rollout = (
            {name: tensor[: self._filled].clone() for name, tensor in self._rollout.items()}
            if self._filled
            else {}
        )
        return {
            "policy": self.policy_state_dict(),
            "critic": critic,
            "optimizer": self.optimizer.state_dict(),
            "reward_scaler": module_state(self.reward_scaler) if self.reward_scaler is not None else {},
            "noise": module_state(self.noise),
            "generators": generators,
            "progress": self.progress,
            "rollout": rollout,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a state returned by `state_dict`. Raises `CheckpointError` if it does not match."""
        # Check that it is a state of PPO with these settings.
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise CheckpointError(f"the learner's state lacks {', '.join(missing)}: it is not a state of PPO")
        scaled = bool(state["reward_scaler"])
        if scaled != self.cfg.normalize_reward:
            raise CheckpointError(
                f"the learner's state was saved with normalize_reward {scaled}: use the same setting"
            )
        # Restore networks and statistics.
        load_module_state(self.noise, state["noise"], "the exploration noise")
        if self.reward_scaler is not None:
            load_module_state(self.reward_scaler, state["reward_scaler"], "the reward scaler")
        self.load_policy_state_dict(state["policy"])
        perception = {
            name.removeprefix("perception."): tensor
            for name, tensor in state["critic"].items()
            if name.startswith("perception.")
        }
        if perception or self.critic_perception is not self.policy:
            load_module_state(self.critic_perception, perception, "the critic's perception")
        critic = {
            name: tensor for name, tensor in state["critic"].items() if not name.startswith("perception.")
        }
        load_module_state(self.critic, critic, "the critic")
        # Restore the optimiser, generators and schedules.
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.generator.set_state(state["generators"]["noise"].cpu())
        self._shuffle_rng.set_state(state["generators"]["shuffle"].cpu())
        self.set_progress(state["progress"])
        if self._image_keys:
            self._shift_rng.set_state(state["generators"]["shift"].cpu())
        # Restore an unfinished rollout.
        self._filled = len(state["rollout"].get("reward", ()))
        self._last_act = None
        for name, tensor in state["rollout"].items():
            self._rollout[name][: self._filled].copy_(tensor)
