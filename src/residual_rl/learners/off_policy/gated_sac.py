"""SAC whose residual only acts where the base policy is expected to fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from residual_rl.errors import ConfigError
from residual_rl.learners.off_policy.actors import GaussianActor
from residual_rl.learners.off_policy.batch import Batch
from residual_rl.learners.off_policy.config import GatedSACCfg, SACCfg
from residual_rl.learners.off_policy.failure_gate import FailureGate, GateTrainer
from residual_rl.learners.off_policy.sac import SAC
from residual_rl.types import Metrics, Obs, State, Transition

if TYPE_CHECKING:
    from residual_rl.learners.common.networks import ObsSpace

__all__ = ["GatedSAC", "GatedSACCfg", "make_policy"]

_NEVER = 2**31


def make_policy(
    cfg: GatedSACCfg, obs_space: ObsSpace, action_dim: int, device: torch.device | str = "cpu", seed: int = 0
) -> GatedActor:
    """Construct an untrained policy. `module_state.load_module_state` loads the weights of an exported one
    into it."""
    return GatedActor(cfg, obs_space, action_dim, torch.Generator().manual_seed(seed), torch.device(device))


class GatedActor(GaussianActor):
    """A squashed Gaussian whose deterministic action is multiplied by the share of a failure gate.

    Only the gate reads `elapsed_steps`, which shows when the base policy takes longer than it should. To the
    critics it would make a demonstration, which is short, unlike all that follows.

    Args: as those of `DeterministicActor`.
    """

    unread_keys = ("elapsed_steps",)

    def __init__(
        self,
        cfg: GatedSACCfg,
        obs_space: ObsSpace,
        action_dim: int,
        generator: torch.Generator,
        device: torch.device,
    ):
        super().__init__(cfg, obs_space, action_dim, generator, device, cfg.init_std, cfg.log_std_range)
        self.gate: FailureGate = FailureGate(cfg, self.obs_vector.size + action_dim, generator).to(device)

    def share(self, obs: Tensor, base_action: Tensor) -> Tensor:
        """The share [..., 1] of the residual that acts, for normalised observation vectors [..., O] and base
        actions [..., A]."""
        elapsed = obs[..., self.num_read]
        if self.normalizer is not None:
            elapsed = self.normalizer.denormalized(obs, self.num_read)
        return self.gate.share(torch.cat([obs, base_action], -1), elapsed)

    def mean(self, obs: Tensor, base_action: Tensor) -> Tensor:
        return self.share(obs, base_action) * super().mean(obs, base_action)


class GatedSAC(SAC):
    """SAC with a failure gate.

    The base policy acts alone in whole episodes until enough of them have ended. Later it acts alone in a
    share of the episodes, from a random step on in others, and up to a random step in yet others. Its
    outcomes label the observations that the gate learns from. With safe exploration the gate also multiplies
    explored actions, and the residual scale in the losses.

    Args: as those of `ppo.PPO`.
    """

    actor: GatedActor

    def __init__(
        self,
        cfg: GatedSACCfg,
        obs_space: ObsSpace,
        action_dim: int,
        num_envs: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        super().__init__(cfg, obs_space, action_dim, num_envs, device, seed)
        self.gate = self.actor.gate
        self.gated = cfg
        self._safe = cfg.exploration == "safe"
        sizes = (self.actor.obs_vector.size, action_dim)
        self.gate_trainer = GateTrainer(cfg, self.gate, sizes, self.device, seed + 1)
        zeros = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._step = zeros.clone()
        """[B]: steps of each env's running episode so far."""
        self._base_until = zeros.clone()
        """[B]: step of it before which the base acts alone."""
        self._base_from = zeros.clone()
        """[B]: step of it from which the base acts alone; `_NEVER` if it does not."""
        self._begins = torch.ones(num_envs, dtype=torch.bool, device=self.device)
        """[B]: whether the next action is the first of an episode."""
        self._restarted = torch.zeros_like(self._begins)
        """[B]: whether the episode started in the state of an earlier one."""
        self._opened = torch.zeros_like(self._begins)
        """[B]: whether the gate has opened in it."""
        self._share = torch.zeros(num_envs, 1, device=self.device)
        """[B, 1]: the gate's share at the last explored action."""
        self.restart_share = cfg.restart_share
        self.start_states = torch.zeros_like(self._begins)
        self._gate_metrics: Metrics = {}
        self._pending_gate_steps = 0.0

    def _make_actor(
        self,
        cfg: SACCfg,
        obs_space: ObsSpace,
        action_dim: int,
        device: torch.device,
        seed: int,
    ) -> GaussianActor:
        assert isinstance(cfg, GatedSACCfg)
        return make_policy(cfg, obs_space, action_dim, device, seed)

    @property
    def warming_up(self) -> bool:
        """Whether the base still acts alone in all episodes."""
        failed, solved = self.gate_trainer.num_episodes
        return failed + solved < self.gated.gate_warmup_episodes or failed < self.gated.gate_min_failures

    @torch.no_grad()
    def act(self, obs: Obs, deterministic: bool = False) -> Tensor:
        action = super().act(obs, deterministic)
        if deterministic:
            return action
        # Episodes that go on from an earlier one are left to the residual.
        self._step = obs["elapsed_steps"][:, 0].long().to(self.device)
        self._restarted = torch.where(self._begins, self._step > 0, self._restarted)
        self._base_until.masked_fill_(self._restarted, 0)
        self._base_from.masked_fill_(self._restarted, _NEVER)
        # The state in which the gate opens for the first time is worth going back to.
        opens = self._share[:, 0] > 0.5
        self._opened &= ~self._begins
        self.start_states = opens & ~self._opened & ~self._restarted
        self._opened |= opens
        self._begins.fill_(False)
        base_acts = (self._step < self._base_until) | (self._step >= self._base_from)
        return action.masked_fill(base_acts[:, None], 0.0)

    def _explore(self, obs: Tensor, base_action: Tensor, noise: Tensor) -> Tensor:
        action = super()._explore(obs, base_action, noise)
        self._share = self.actor.share(obs, base_action)
        return self._share * action if self._safe else action

    @torch.no_grad()
    def _sample(self, count: int) -> list[Tensor]:
        batch = Batch(*super()._sample(count))
        if self._safe:
            share = self.actor.share(batch.obs, batch.base_action)
            next_share = self.actor.share(batch.next_obs, batch.next_base_action)
            batch = batch._replace(
                scale=share * batch.scale,
                next_scale=next_share * batch.next_scale,
                share=share[..., 0],
                next_share=next_share[..., 0],
            )
        return list(batch)

    @torch.no_grad()
    def observe(self, transition: Transition) -> None:
        super().observe(transition)
        if transition.success is None:
            raise ConfigError(
                "the failure gate needs the success of episodes, which this env does not report"
            )
        if transition.intervention is not None:  # the outcome is no longer that of the base
            self._base_from.masked_fill_(transition.intervention.to(self.device), _NEVER)
        ended = transition.terminated | transition.truncated
        self._begins |= ended.to(self.device)
        for env_id in ended.nonzero().flatten().tolist():
            # Label what followed the handover to the base. Steps after which the gate happened to stay closed
            # are not labelled: the failures that it would have noticed are missing among them.
            steps, first = int(self._step[env_id]) + 1, int(self._base_from[env_id])
            if first < steps:
                alone = min(steps - first, self.buffer.filled_rows)
                rows = [self.buffer.newest(name, alone)[:, env_id] for name in ("obs", "base_action")]
                self.gate_trainer.add(torch.cat(rows, 1), bool(transition.success[env_id]), first == 0)
            self._base_until[env_id], self._base_from[env_id] = self._draw_handovers(steps)

    def _draw_handovers(self, last_length: int) -> tuple[int, int]:
        """The step of the next episode before which the base acts alone, and the step from which it does."""
        if self.warming_up:
            return 0, 0
        cfg = self.gated
        kind, share = torch.rand(2, generator=self._explore_rng, device=self.device).tolist()
        at = int(share * last_length)
        if kind < cfg.base_share:
            return 0, 0
        if kind < cfg.base_share + cfg.handback_share:
            return 0, at
        if kind < cfg.base_share + cfg.handback_share + cfg.takeover_share:
            return at, _NEVER
        return 0, _NEVER

    def update(self, max_steps: int | None = None) -> Metrics:
        rows = self._new_rows
        metrics = super().update(max_steps)
        trainer, cfg = self.gate_trainer, self.gated
        if self.warming_up:
            return metrics
        self._pending_gate_steps += rows * self.num_envs * cfg.utd * cfg.gate_update_share
        first = not self.gate.trained
        due = (
            cfg.gate_fit_steps if first else int(self._pending_gate_steps // cfg.gate_every) * cfg.gate_every
        )
        if due:
            self._pending_gate_steps = 0.0 if first else self._pending_gate_steps - due
            loss = trainer.fit(due, self.actor.normalize)
            self._gate_metrics = {"gate/loss": loss, **trainer.calibrate(self.actor.normalize)}
            if first:
                self._base_from.fill_(_NEVER)
        failed, solved = trainer.num_episodes
        return metrics | self._gate_metrics | {"gate/failures": failed, "gate/successes": solved}

    @property
    def _actor_learns(self) -> bool:
        return self.gate.trained and super()._actor_learns

    # --- state ----------------------------------------------------------------------------------------

    def state_dict(self) -> State:
        gate = {
            "trainer": self.gate_trainer.state_dict(),
            "step": self._step.clone(),
            "base_until": self._base_until.clone(),
            "base_from": self._base_from.clone(),
            "begins": self._begins.clone(),
            "restarted": self._restarted.clone(),
            "opened": self._opened.clone(),
            "pending_steps": self._pending_gate_steps,
            "metrics": dict(self._gate_metrics),
        }
        return super().state_dict() | {"gate": gate}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        gate = state["gate"]
        self.gate_trainer.load_state_dict(gate["trainer"])
        self._step.copy_(gate["step"])
        self._base_until.copy_(gate["base_until"])
        self._base_from.copy_(gate["base_from"])
        self._begins.copy_(gate["begins"])
        self._restarted.copy_(gate["restarted"])
        self._opened.copy_(gate["opened"])
        self._pending_gate_steps = gate["pending_steps"]
        self._gate_metrics = dict(gate["metrics"])
