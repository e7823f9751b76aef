"""The common part of SAC and TD3: replay buffer, warm-up, progressive exploration, and training of the
critics."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from residual_rl.composition import compose, residual_penalty
from residual_rl.errors import ConfigError
from residual_rl.learners.common.compilation import compiled, cuda_graphed
from residual_rl.learners.common.ema import ActorEMA, soft_update
from residual_rl.learners.common.exploration_noise import CorrelatedNoise
from residual_rl.learners.common.optimizer import FlatAdam
from residual_rl.learners.off_policy.actors import DeterministicActor, averaged, default_obs_keys
from residual_rl.learners.off_policy.batch import Batch
from residual_rl.learners.off_policy.config import OffPolicyCfg
from residual_rl.learners.off_policy.critics import Critics, PopArt
from residual_rl.learners.off_policy.demonstrations import LearnsFromDemonstrations
from residual_rl.learners.off_policy.replay_buffer import ReplayBuffer
from residual_rl.learners.off_policy.resumable_state import ResumableState
from residual_rl.learners.off_policy.sampling import sample_batches
from residual_rl.types import Metrics, Obs, State, Transition
from residual_rl.utils.module_state import load_module_state, module_state

_STEPS_AT_ONCE = 16
"""Number of gradient steps whose batches are sampled together."""
_ADAM_EPSILON = 1e-8


class OffPolicyLearner(ResumableState, LearnsFromDemonstrations):
    """Learns a residual policy from a replay buffer; implements `types.Learner`. Subclasses implement the
    actor.

    Sources: Lillicrap et al., "Continuous control with deep reinforcement learning", 2016; random subsets of
    an ensemble of critics: Chen et al., "Randomized Ensembled Double Q-learning", 2021; progressive
    exploration and the critics' inputs: Yuan et al., "Policy Decorator", 2025. Choices:

    - Exploration noise is correlated in time. During the warm-up, the residual consists of noise only.
    - An incomplete n-step window at the newest step bootstraps from there.
    - Actions are composed with the residual scale reported with each transition. A scale that is equal in all
      envs is not stored per transition: its most recent value applies to all of them.
    - Observation statistics are updated with each step once, at the start of an update.

    Args:
        cfg: the settings.
        policy: the untrained actor.
        action_dim: A.
        num_envs: B.
        device: device of the computation and the replay buffer.
        seed: seed of the critics, the exploration and the sampling.
    """

    default_obs_keys = staticmethod(default_obs_keys)
    actor_metrics: tuple[str, ...] = ("actor_loss",)
    """Names of the metrics returned by `_actor_loss`."""

    def __init__(
        self,
        cfg: OffPolicyCfg,
        policy: DeterministicActor,
        action_dim: int,
        num_envs: int,
        device: torch.device,
        seed: int,
    ):
        # Settings
        self.cfg = cfg
        self.policy = policy
        self.num_envs = num_envs
        self.num_steps = cfg.num_steps
        self.device = device
        seeds = torch.randint(2**62, (4,), generator=torch.Generator().manual_seed(seed)).tolist()
        obs_dim = policy.obs_vector.size

        # Critics
        self._critic_reads_base_action = cfg.critic_base_action or cfg.critic_input == "concat"
        inputs = policy.num_read + action_dim * (1 + self._critic_reads_base_action)
        sizes = (inputs, *cfg.hidden_sizes, 1)
        generator = torch.Generator().manual_seed(seeds[0])
        critics = Critics(
            cfg.num_critics, sizes, cfg.activation, cfg.critic_layer_norm, cfg.output_init, generator
        )
        self.critics = critics.to(device)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.popart = PopArt(cfg.normalize_targets).to(device)

        # Optimisers and the deployed actor
        self.critic_optimizer = _adam("critics", self.critics, cfg.critic_learning_rate, cfg.max_grad_norm)
        self.actor_optimizer = _adam("actor", policy.net, cfg.actor_learning_rate, cfg.max_grad_norm)
        self._ema = ActorEMA(policy.net, cfg.actor_ema_power) if cfg.actor_ema_power > 0.0 else None
        self.deployed = policy if self._ema is None else averaged(policy, self._ema)
        """The policy that is evaluated and exported: the actor, or the moving average of its weights."""

        # Exploration and data
        self.noise = CorrelatedNoise(num_envs, action_dim, cfg.noise_correlation, seeds[1], device)
        self._explore_rng = torch.Generator(device).manual_seed(seeds[2])
        self._sampling_rng = torch.Generator(device).manual_seed(seeds[3])
        self.buffer = ReplayBuffer(cfg.buffer_size, num_envs, obs_dim, action_dim, device)
        self.demonstrations: ReplayBuffer | None = None

        # Counters
        self._residual_scale = torch.ones(action_dim, device=device)
        """[A]: the most recent residual scale, if it is equal in all envs."""
        self._new_rows = 0
        """Rows collected since the last update."""
        self._pending_updates = 0.0
        """Gradient steps due by the update-to-data ratio but not done yet."""
        self.num_updates = 0
        """Gradient steps of the critics so far."""
        self.num_actor_updates = 0
        """Gradient steps of the actor so far."""

        # Compiled functions
        self._fast_target = compiled(self._target, cfg.compile)
        self._fast_critic_loss = compiled(self._critic_loss, cfg.compile)
        self._fast_actor_loss = compiled(self._actor_loss, cfg.compile)
        self._fast_critic_step = cuda_graphed(self._critic_step, cfg.cudagraphs, device, cfg.compile)
        self._fast_actor_step = cuda_graphed(self._actor_step, cfg.cudagraphs, device, cfg.compile)

    # --- to be implemented by subclasses --------------------------------------------------------------

    def _explore(self, obs: Tensor, base_action: Tensor, noise: Tensor) -> Tensor:
        """Residual actions [B, A] in [-1, 1] with exploration from standard normal `noise` [B, A]."""
        raise NotImplementedError

    def _next_action(self, obs: Tensor, base_action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | float]:
        """Residual actions [b, A] for the target, and a bonus [b] added to their values where they act."""
        raise NotImplementedError

    def _actor_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The actor's loss and its metrics, in the order of `actor_metrics`."""
        raise NotImplementedError

    # --- collecting -----------------------------------------------------------------------------------

    @property
    def env_steps(self) -> int:
        """Env steps observed so far, summed over envs."""
        return self.buffer.num_written * self.num_envs

    @torch.no_grad()
    def act(self, obs: Obs, deterministic: bool = False) -> Tensor:
        """The residual action [B, A] in [-1, 1]; with exploration noise unless `deterministic`."""
        if deterministic:
            return self.deployed.act(obs)
        noise = self.noise.sample().value
        if self.env_steps < self.cfg.warmup_steps:
            action = self._warm_up(noise)
        else:
            action = self._explore(*self.policy.joined(obs), noise)
        # Progressive exploration: use the residual with increasing probability
        if self.env_steps < self.cfg.prog_explore:
            probability = self.env_steps / self.cfg.prog_explore
            active = (
                torch.rand(self.num_envs, 1, generator=self._explore_rng, device=self.device) < probability
            )
            action = torch.where(active, action, 0.0)
        return action

    def _warm_up(self, noise: Tensor) -> Tensor:
        """Residual actions [B, A] of the warm-up; Gaussian ones from standard normal `noise` [B, A]."""
        if self.cfg.warmup_noise == "correlated":
            return (self.cfg.warmup_std * noise).clamp(-1.0, 1.0)
        if self.cfg.warmup_noise == "uniform":
            return 2.0 * torch.rand(noise.shape, generator=self._explore_rng, device=self.device) - 1.0
        return torch.zeros_like(noise)

    @torch.no_grad()
    def observe(self, transition: Transition) -> None:
        """Store one step of all envs."""
        row = self._row(transition)
        self.buffer.add(row)
        if transition.intervention is not None:
            self._add_intervention(row, transition)
        self.noise.restart((transition.terminated | transition.truncated).to(self.device))
        self._new_rows += 1

    def _row(self, transition: Transition) -> dict[str, Tensor]:
        """The columns of the replay buffer for a transition, with shifted and scaled rewards."""
        vector = self.policy.obs_vector
        device = self.device
        scale, next_scale = self._scales(transition)
        return {
            "obs": vector(transition.obs, device),
            "next_obs": vector(transition.next_obs, device),
            "base_action": transition.base_action,
            "next_base_action": transition.next_obs["base_action"],
            "residual_action": transition.residual_action,
            "action": transition.action,
            "reward": self.cfg.reward_scale * (transition.reward + self.cfg.reward_shift),
            "terminated": transition.terminated,
            "truncated": transition.truncated,
            "scale": scale,
            "next_scale": next_scale,
        }

    def _scales(self, transition: Transition) -> tuple[Tensor, Tensor]:
        """Residual scales [B, A] to store with a transition: those of each env, or 1 if `_residual_scale`
        applies to all."""
        one = torch.ones(transition.residual_action.shape, device=self.device)
        if self.cfg.critic_input != "sum":
            return one, one
        scale, next_scale = transition.effective_scale, transition.next_effective_scale
        if scale is None:
            raise ConfigError(
                "critic_input sum requires one residual scale per decision, but with chunk whole and an"
                " adaptive scale it differs between the steps of a chunk: choose chunk step"
            )
        if isinstance(scale, Tensor) and scale.dim() == 2:
            assert isinstance(next_scale, Tensor)
            return scale.to(self.device).expand_as(one), next_scale.to(self.device).expand_as(one)
        self._residual_scale.copy_(torch.as_tensor(scale))
        return one, one

    # --- learning -------------------------------------------------------------------------------------

    @property
    def updates_due(self) -> int:
        """Number of gradient steps that `update` would take."""
        new = 0 if self.env_steps < self.cfg.learning_starts else self._new_rows * self.num_envs
        return int(round(self._pending_updates + self.cfg.utd * new, 9))

    def update(self, max_steps: int | None = None) -> Metrics:
        """Take the gradient steps for the steps observed since the last update; at most `max_steps`, if it is
        given, so that the others remain due.

        Raises `NonFiniteError` if an observation or gradient is not finite; the weights then stay as they
        were.
        """
        if self._new_rows == 0 and self._pending_updates < 1.0:
            raise RuntimeError("update() must follow observe()")
        cfg = self.cfg
        rows, self._new_rows = self._new_rows, 0
        # Observation statistics
        if self.policy.normalizer is not None and rows > 0:
            self.policy.normalizer.update(self.buffer.newest("obs", min(rows, self.buffer.num_rows)))
        metrics: Metrics = {"train/buffer_size": len(self.buffer)}
        if self.env_steps < cfg.learning_starts:
            return metrics
        # Number of gradient steps; rounded, so that 10 x 0.1 is 1
        self._pending_updates = round(self._pending_updates + cfg.utd * rows * self.num_envs, 9)
        steps = min(int(self._pending_updates), max_steps or sys.maxsize)
        self._pending_updates -= steps
        # Gradient steps
        critic_sums = torch.zeros((), device=self.device)
        actor_sums = torch.zeros((), device=self.device)
        actor_steps = 0
        for first in range(0, steps, _STEPS_AT_ONCE):
            count = min(_STEPS_AT_ONCE, steps - first)
            pieces = self._sample(count)
            for i in range(count):
                piece = [tensor[i] for tensor in pieces]
                critic_sums = critic_sums + self._fast_critic_step(*piece)
                self.num_updates += 1
                if self._actor_learns and self.num_updates % cfg.actor_every == 0:
                    actor_sums = actor_sums + self._fast_actor_step(*piece)
                    if self._ema is not None:
                        self._ema.update(self.num_actor_updates)
                    self.num_actor_updates += 1
                    actor_steps += 1
        for optimizer in self._optimizers().values():
            optimizer.raise_if_nonfinite()
        # Metrics
        metrics["train/updates"] = self.num_updates
        if steps:
            metrics |= _means(_CRITIC_METRICS, critic_sums, steps)
        if actor_steps:
            metrics |= _means(self.actor_metrics, actor_sums, actor_steps)
        return metrics

    @property
    def _actor_learns(self) -> bool:
        """Whether the actor's training has started."""
        return self.env_steps >= self.cfg.actor_starts

    @torch.no_grad()
    def _sample(self, count: int) -> list[Tensor]:
        """The batches of `count` gradient steps: the fields of `Batch`, [count, …] each."""
        normalize = self.policy.normalize
        return list(
            sample_batches(self.cfg, self.buffer, self.demonstrations, normalize, count, self._sampling_rng)
        )

    def _value(
        self,
        critics: Critics,
        obs: Tensor,
        base_action: Tensor,
        critic_action: Tensor,
        critic_ids: Tensor | None = None,
    ) -> Tensor:
        """Values [N, b] of actions."""
        obs = obs[..., : self.policy.num_read]
        inputs = [obs, base_action, critic_action] if self._critic_reads_base_action else [obs, critic_action]
        return self.popart.to_value(critics(torch.cat(inputs, -1), critic_ids))

    def _critic_action(self, base_action: Tensor, residual_action: Tensor, scale: Tensor) -> Tensor:
        """The action in the critics' input: composed, or the residual action itself."""
        if self.cfg.critic_input != "sum":
            return residual_action
        return compose(base_action, residual_action, self._residual_scale * scale)

    @torch.no_grad()
    def _target(self, batch: Batch) -> Tensor:
        """The critics' targets [b]."""
        action, bonus = self._next_action(batch.next_obs, batch.next_base_action, batch.target_noise)
        critic_action = self._critic_action(batch.next_base_action, action, batch.next_scale)
        critic_ids = batch.critic_ids if self.cfg.num_target_critics < self.cfg.num_critics else None
        value = self._value(
            self.target_critics, batch.next_obs, batch.next_base_action, critic_action, critic_ids
        ).amin(0)
        return batch.n_step_return + batch.discount * (value + batch.next_share * bonus)

    def _critic_loss(self, batch: Batch, target: Tensor) -> tuple[Tensor, Tensor]:
        """Half the mean squared error, summed over the critics, and metrics in the order of
        `_CRITIC_METRICS`."""
        value = self._value(self.critics, batch.obs, batch.base_action, batch.critic_action)
        error = self.popart.to_output(value) - self.popart.to_output(target)
        loss = 0.5 * error.square().mean(1).sum()
        with torch.no_grad():
            metrics = torch.stack([loss, value.mean(), (value.amax(0) - value.amin(0)).mean()])
        return loss, metrics

    def _critic_step(self, *piece: Tensor) -> Tensor:
        batch = Batch(*piece)
        target = self._fast_target(batch)
        self.popart.update(target, self.critics, self.target_critics)
        loss, metrics = self._fast_critic_loss(batch, target)
        self.critic_optimizer.step(torch.autograd.grad(loss, self.critic_optimizer.parameters))
        soft_update(self.target_critics, self.critics, self.cfg.tau)
        return metrics

    def _actor_step(self, *piece: Tensor) -> Tensor:
        loss, metrics = self._fast_actor_loss(Batch(*piece))
        self.actor_optimizer.step(torch.autograd.grad(loss, self.actor_optimizer.parameters))
        return metrics

    def _value_for_actor(self, batch: Batch, residual_action: Tensor) -> Tensor:
        """The objective that the actor maximises [b]: the value minus a penalty on the residual.

        Source of the penalty: TD3+BC, Fujimoto & Gu, "A Minimalist Approach to Offline Reinforcement
        Learning", 2021. Deviation: its weight is not relative to the magnitude of the values.
        """
        critic_action = self._critic_action(batch.base_action, residual_action, batch.scale)
        value = self._value(self.critics, batch.obs, batch.base_action, critic_action)
        value = value.amin(0) if self.cfg.actor_value == "min" else value.mean(0)
        return value + residual_penalty(residual_action, 1.0, self.cfg.actor_penalty)

    # --- state ----------------------------------------------------------------------------------------

    def set_progress(self, fraction: float) -> None:
        """Does nothing: these learners have no schedules."""

    def policy_state_dict(self) -> State:
        """The deployed actor and observation statistics, by name."""
        return module_state(self.deployed)

    def load_policy_state_dict(self, state: State) -> None:
        """Restore a state returned by `policy_state_dict`. Raises `CheckpointError` if it does not match."""
        load_module_state(self.policy, state, "the residual policy")
        if self._ema is not None:
            self._ema.restart()

    def replay_bytes(self, rows: int, kept_rows: int) -> tuple[int, int]:
        """See `types.HasReplay`."""
        buffer, demos = self.buffer, self.demonstrations
        demo_bytes = demos.num_written * demos.row_bytes if demos is not None else 0
        full = min(rows, buffer.num_rows + kept_rows) // buffer.segment_rows * buffer.segment_rows
        return full * buffer.row_bytes + demo_bytes, min(rows, buffer.segment_rows) * buffer.row_bytes


_CRITIC_METRICS = ("critic_loss", "q", "q_spread")


def _means(names: Sequence[str], sums: Tensor, count: int) -> Metrics:
    return {f"train/{name}": value for name, value in zip(names, (sums / count).tolist(), strict=True)}


def _adam(name: str, module: torch.nn.Module, learning_rate: float, max_grad_norm: float) -> FlatAdam:
    named = [(f"{name}.{parameter}", p) for parameter, p in module.named_parameters()]
    return FlatAdam(named, learning_rate, max_grad_norm, _ADAM_EPSILON)
