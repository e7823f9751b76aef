"""Saving and restoring the training state of off-policy learners."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residual_rl.errors import CheckpointError
from residual_rl.learners.common.ema import ActorEMA
from residual_rl.learners.common.exploration_noise import CorrelatedNoise
from residual_rl.learners.common.optimizer import FlatAdam
from residual_rl.learners.off_policy.actors import DeterministicActor
from residual_rl.learners.off_policy.critics import Critics, PopArt
from residual_rl.learners.off_policy.replay_buffer import ReplayBuffer
from residual_rl.types import State
from residual_rl.utils.module_state import load_module_state, module_state

_COUNTERS = {"residual_scale", "new_rows", "pending_updates", "num_updates", "num_actor_updates"}
_STATE = _COUNTERS | {"modules", "optimizers", "generators", "buffer", "demonstrations", "ema"}


class ResumableState:
    """The part of `OffPolicyLearner` that saves and restores its training state."""

    policy: DeterministicActor
    critics: Critics
    target_critics: Critics
    popart: PopArt
    critic_optimizer: FlatAdam
    actor_optimizer: FlatAdam
    noise: CorrelatedNoise
    buffer: ReplayBuffer
    demonstrations: ReplayBuffer | None
    collects_interventions: bool
    num_updates: int
    num_actor_updates: int
    _ema: ActorEMA | None
    _explore_rng: torch.Generator
    _sampling_rng: torch.Generator
    _residual_scale: Tensor
    _new_rows: int
    _pending_updates: float

    def _optimizers(self) -> dict[str, FlatAdam]:
        return {"critics": self.critic_optimizer, "actor": self.actor_optimizer}

    def _modules(self) -> dict[str, torch.nn.Module]:
        modules = {"policy": self.policy, "critics": self.critics, "target_critics": self.target_critics}
        return modules | {"popart": self.popart, "noise": self.noise}

    def _generators(self) -> dict[str, torch.Generator]:
        return {"noise": self.noise.generator, "explore": self._explore_rng, "sampling": self._sampling_rng}

    def state_dict(self) -> State:
        """The state needed to resume exactly, with replay buffer and demonstrations. Not valid between `act`
        and `observe`."""
        return {
            "modules": {name: module_state(module) for name, module in self._modules().items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers().items()},
            "generators": {name: generator.get_state() for name, generator in self._generators().items()},
            "buffer": self.buffer.state_dict(),
            "residual_scale": self._residual_scale.clone(),
            "new_rows": self._new_rows,
            "pending_updates": self._pending_updates,
            "num_updates": self.num_updates,
            "num_actor_updates": self.num_actor_updates,
            "ema": self._ema.state_dict() if self._ema is not None else None,
            "demonstrations": self.demonstrations.state_dict() if self.demonstrations is not None else None,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a state returned by `state_dict`. Raises `CheckpointError` if it does not match."""
        # Check that it is a state of such a learner.
        missing = sorted(_STATE - state.keys())
        if missing:
            raise CheckpointError(
                f"the learner's state lacks {', '.join(missing)}: it is not a state of {type(self).__name__}"
            )
        own: dict[str, dict[str, Any]] = {
            "modules": self._modules(),
            "optimizers": self._optimizers(),
            "generators": self._generators(),
        }
        for kind, parts in own.items():
            if state[kind].keys() != parts.keys():
                raise CheckpointError(
                    f"the learner's {kind} differ: {sorted(state[kind].keys() ^ parts.keys())}"
                )
        if (state["ema"] is None) != (self._ema is None):
            raise CheckpointError(
                "the learner's state was saved with another actor_ema_power: use the same setting"
            )
        # Restore networks, optimisers and generators.
        for name, module in self._modules().items():
            load_module_state(module, state["modules"][name], name.replace("_", " "))
        for name, optimizer in self._optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, generator in self._generators().items():
            generator.set_state(state["generators"][name].cpu())
        # Restore the data.
        self.buffer.load_state_dict(state["buffer"])
        if state["demonstrations"] is not None:
            self.demonstrations = self.buffer.empty_like(
                state["demonstrations"]["num_rows"], "demonstrations"
            )
            self.demonstrations.load_state_dict(state["demonstrations"])
            self.demonstrations.closed = not self.collects_interventions
        # Restore the counters.
        self._residual_scale.copy_(state["residual_scale"])
        self._new_rows = state["new_rows"]
        self._pending_updates = state["pending_updates"]
        self.num_updates = state["num_updates"]
        self.num_actor_updates = state["num_actor_updates"]
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
