"""What SAC and TD3 share: collecting into a replay buffer, warm-up, progressive exploration, and the learning of the critics."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from residual_rl.composition import compose, residual_penalty
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.learners.common.compilation import compiled, cuda_graphed
from residual_rl.learners.common.ema import ActorEMA, soft_update
from residual_rl.learners.common.exploration_noise import CorrelatedNoise
from residual_rl.learners.common.optimizer import FlatAdam
from residual_rl.learners.off_policy.actors import DeterministicActor, averaged
from residual_rl.learners.off_policy.batch import Batch
from residual_rl.learners.off_policy.config import OffPolicyCfg
from residual_rl.learners.off_policy.critics import Critics, TargetScale
from residual_rl.learners.off_policy.replay_buffer import ReplayBuffer
from residual_rl.types import Metrics, Obs, State, Transition
from residual_rl.utils.module_state import load_module_state, module_state

_STEPS_AT_ONCE = 16
"""Gradient steps whose batches are sampled together."""
_ADAM_EPSILON = 1e-8


class OffPolicyLearner:
    """Learns a residual policy from a replay buffer; implements `types.Learner`. A subclass says how its actor draws and learns.

    Source: Lillicrap et al., "Continuous control with deep reinforcement learning", 2016; ensembles and their random subsets after Chen et
    al., "Randomized Ensembled Double Q-learning", 2021; progressive exploration and the critics' inputs after Yuan et al., "Policy
    Decorator", 2025. Choices:

    - Exploration noise is correlated in time. In the warm-up it is all there is of the residual.
    - A window of n steps that is not complete yet is bootstrapped where it ends now.
    - The residual scale of a composed action is the one that the env tells with each transition: the newest, where it is the same in all
      worlds, else the one of its time.
    - Observation statistics take in each step once, when an update starts.

    Args:
        cfg: the settings.
        policy: the actor, fresh.
        action_dim: A.
        num_envs: B.
        device: where it computes and keeps its transitions.
        seed: of the critics, the exploration and the sampling.
    """

    def __init__(self, cfg: OffPolicyCfg, policy: DeterministicActor, action_dim: int, num_envs: int, device: torch.device, seed: int):
        self.cfg, self.policy, self.num_envs, self.num_steps, self.device = cfg, policy, num_envs, cfg.num_steps, device
        seeds = torch.randint(2**62, (4,), generator=torch.Generator().manual_seed(seed)).tolist()
        obs_dim = policy.obs_vector.size
        self._sees_base_action = cfg.critic_base_action or cfg.critic_input == "concat"
        inputs = obs_dim + action_dim * (1 + self._sees_base_action)
        sizes, generator = (inputs, *cfg.hidden_sizes, 1), torch.Generator().manual_seed(seeds[0])
        critics = Critics(cfg.num_critics, sizes, cfg.activation, cfg.critic_layer_norm, cfg.output_init, generator)
        self.critics = critics.to(device)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.target_scale = TargetScale(cfg.normalize_targets).to(device)
        self.critic_optimizer = _adam("critics", self.critics, cfg.critic_learning_rate, cfg.max_grad_norm)
        self.actor_optimizer = _adam("actor", policy.net, cfg.actor_learning_rate, cfg.max_grad_norm)
        self._ema = ActorEMA(policy.net, cfg.actor_ema_power) if cfg.actor_ema_power > 0.0 else None
        self.deployed = policy if self._ema is None else averaged(policy, self._ema)
        """What acts without exploration, and what is saved as the policy: the actor, or the average of its weights."""
        self.noise = CorrelatedNoise(num_envs, action_dim, cfg.noise_correlation, seeds[1], device)
        self._gates = torch.Generator(device).manual_seed(seeds[2])
        self._sampling = torch.Generator(device).manual_seed(seeds[3])
        self.buffer = ReplayBuffer(cfg.buffer_size, num_envs, obs_dim, action_dim, device)
        self.demonstrations: ReplayBuffer | None = None

        self._residual_scale = torch.ones(action_dim, device=device)
        """[A]: the newest, where it is the same in all worlds."""
        self._new_rows = 0
        """Rows since the last update."""
        self._owed = 0.0
        """Gradient steps that the data so far are worth, less those done: below 1 after an update."""
        self.num_updates = 0
        """Gradient steps of the critics so far."""
        self.num_actor_updates = 0
        """Gradient steps of the actor so far."""
        self._fast_target = compiled(self._target, cfg.compile)
        self._fast_critic_loss = compiled(self._critic_loss, cfg.compile)
        self._fast_actor_loss = compiled(self._actor_loss, cfg.compile)
        self._fast_critic_step = cuda_graphed(self._critic_step, cfg.cudagraphs, device, cfg.compile)
        self._fast_actor_step = cuda_graphed(self._actor_step, cfg.cudagraphs, device, cfg.compile)

    # What a subclass says

    def _explore(self, obs: Tensor, base_action: Tensor, noise: Tensor) -> Tensor:
        """Exploring residual actions [B, A] in [-1, 1], made of standard normal `noise` [B, A]."""
        raise NotImplementedError

    def _next_action(self, obs: Tensor, base_action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | float]:
        """Residual actions [b, A] of the target, and what is added to their values [b]."""
        raise NotImplementedError

    def _actor_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The actor's loss and its figures, in the order of `actor_figures`."""
        raise NotImplementedError

    actor_figures: tuple[str, ...] = ("actor_loss",)

    # Collecting

    @property
    def env_steps(self) -> int:
        """Env steps observed so far, over all worlds."""
        return self.buffer.num_written * self.num_envs

    @torch.no_grad()
    def act(self, obs: Obs, deterministic: bool = False) -> Tensor:
        """The residual action [B, A] in [-1, 1]; with exploration noise unless `deterministic`."""
        if deterministic:
            return self.deployed.act(obs)
        noise = self.noise.sample().value
        warm = self.env_steps >= self.cfg.warmup_steps
        action = self._explore(*self.policy.joined(obs), noise) if warm else self._warm_up(noise)
        if self.env_steps < self.cfg.prog_explore:
            share = self.env_steps / self.cfg.prog_explore
            acts = torch.rand(self.num_envs, 1, generator=self._gates, device=self.device) < share
            action = torch.where(acts, action, 0.0)
        return action

    def _warm_up(self, noise: Tensor) -> Tensor:
        """Residual actions [B, A] of the warm-up, made of standard normal `noise` [B, A] where they are Gaussian."""
        if self.cfg.warmup_noise == "correlated":
            return (self.cfg.warmup_std * noise).clamp(-1.0, 1.0)
        if self.cfg.warmup_noise == "uniform":
            return 2.0 * torch.rand(noise.shape, generator=self._gates, device=self.device) - 1.0
        return torch.zeros_like(noise)

    @torch.no_grad()
    def observe(self, transition: Transition) -> None:
        """Store one step of all worlds."""
        self.buffer.add(self._row(transition))
        self.noise.restart((transition.terminated | transition.truncated).to(self.device))
        self._new_rows += 1

    def load_demonstrations(self, episodes: Sequence[Transition]) -> None:
        """Learn from these as well, `demo_share` of each batch: episodes, with time where worlds are else, [T, …]. Each has
        `residual_action` and the executed `action`, and is terminated or truncated in its last step. Raises `ConfigError` where they do
        not fit."""
        if not episodes:
            raise ConfigError("there are no demonstrations to learn from")
        self.demonstrations = ReplayBuffer.of_episodes([self._row(episode) for episode in episodes], self.buffer, "demonstrations")

    def _row(self, transition: Transition) -> dict[str, Tensor]:
        """The columns of the replay buffer; rewards are as the critics see them."""
        vector, device = self.policy.obs_vector, self.device
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
        """Residual scales [B, A] to store with a transition: each world's own, or 1 where `_residual_scale` holds that of all."""
        one = torch.ones(transition.residual_action.shape, device=self.device)
        if self.cfg.critic_input != "sum":
            return one, one
        scale, next_scale = transition.effective_scale, transition.next_effective_scale
        if scale is None:
            raise ConfigError(
                "critic_input sum needs one residual scale for each decision, and with chunk whole and an adaptive scale "
                "each step has its own: choose critic_input res or concat, or chunk step"
            )
        if isinstance(scale, Tensor) and scale.dim() == 2:
            assert isinstance(next_scale, Tensor)
            return scale.to(self.device).expand_as(one), next_scale.to(self.device).expand_as(one)
        self._residual_scale.copy_(torch.as_tensor(scale))
        return one, one

    # Learning

    def update(self) -> Metrics:
        """Gradient steps for the steps observed since the last update. Raises `NonFiniteError` before anything that is not finite reaches a
        weight."""
        if self._new_rows == 0:
            raise RuntimeError("update() needs a step observed since the last one")
        cfg, rows, self._new_rows = self.cfg, self._new_rows, 0
        if self.policy.normalizer is not None:
            self.policy.normalizer.update(self.buffer.newest("obs", min(rows, self.buffer.num_rows)))
        metrics: Metrics = {"train/buffer_size": len(self.buffer)}
        if self.env_steps < cfg.learning_starts:
            return metrics
        self._owed = round(self._owed + cfg.utd * rows * self.num_envs, 9)  # so that ten times 0.1 is 1
        steps = int(self._owed)
        self._owed -= steps
        critic_sums, actor_sums, actor_steps = torch.zeros((), device=self.device), torch.zeros((), device=self.device), 0
        for first in range(0, steps, _STEPS_AT_ONCE):
            count = min(_STEPS_AT_ONCE, steps - first)
            pieces = self._sample(count)
            for i in range(count):
                piece = [tensor[i] for tensor in pieces]
                critic_sums = critic_sums + self._fast_critic_step(*piece)
                self.num_updates += 1
                if self.env_steps >= cfg.actor_starts and self.num_updates % cfg.actor_every == 0:
                    actor_sums = actor_sums + self._fast_actor_step(*piece)
                    if self._ema is not None:
                        self._ema.update(self.num_actor_updates)
                    self.num_actor_updates += 1
                    actor_steps += 1
        for optimizer in self._optimizers().values():
            optimizer.check()
        metrics["train/updates"] = self.num_updates
        for names, sums, number in ((_CRITIC_FIGURES, critic_sums, steps), (self.actor_figures, actor_sums, actor_steps)):
            if number:
                metrics |= {f"train/{name}": value for name, value in zip(names, (sums / number).tolist(), strict=True)}
        return metrics

    @torch.no_grad()
    def _sample(self, count: int) -> list[Tensor]:
        """What `count` gradient steps learn from, as `Batch` orders it, [count, …] each."""
        cfg, demos, size = self.cfg, self.cfg.demo_batch_size, self.cfg.batch_size
        arguments = cfg.n_step, cfg.gamma, cfg.bootstrap_at_done, self._sampling
        sample = [column.unflatten(0, (count, size - demos)) for column in self.buffer.sample(count * (size - demos), *arguments)]
        if demos:
            if self.demonstrations is None:
                raise ConfigError(f"demo_share is {cfg.demo_share}, but there are no demonstrations")
            shown = self.demonstrations.sample(count * demos, *arguments)
            sample = [torch.cat([own, other.unflatten(0, (count, demos))], 1) for own, other in zip(sample, shown, strict=True)]
        obs, base_action, residual_action, action, scale, total, discount, next_obs, next_base_action, next_scale = sample
        judged = action if cfg.critic_input == "sum" else residual_action
        noise = torch.randn(2, *action.shape, generator=self._sampling, device=self.device)
        members = torch.rand(count, cfg.num_critics, generator=self._sampling, device=self.device).argsort(1)[:, : cfg.num_target_critics]
        obs, next_obs = self.policy.normalize(obs), self.policy.normalize(next_obs)
        batch = Batch(obs, base_action, judged, scale, total, discount, next_obs, next_base_action, next_scale, noise[0], noise[1], members)
        return list(batch)

    def _judge(self, critics: Critics, obs: Tensor, base_action: Tensor, judged: Tensor, members: Tensor | None = None) -> Tensor:
        """Values [N, b] of the actions that critics judge."""
        inputs = [obs, base_action, judged] if self._sees_base_action else [obs, judged]
        return self.target_scale.to_value(critics(torch.cat(inputs, -1), members))

    def _composed(self, base_action: Tensor, residual_action: Tensor, scale: Tensor) -> Tensor:
        """What critics judge of a residual action."""
        return compose(base_action, residual_action, self._residual_scale * scale) if self.cfg.critic_input == "sum" else residual_action

    @torch.no_grad()
    def _target(self, batch: Batch) -> Tensor:
        """What the critics learn, [b]."""
        action, bonus = self._next_action(batch.next_obs, batch.next_base_action, batch.target_noise)
        judged = self._composed(batch.next_base_action, action, batch.next_scale)
        members = batch.members if self.cfg.num_target_critics < self.cfg.num_critics else None
        value = self._judge(self.target_critics, batch.next_obs, batch.next_base_action, judged, members).amin(0)
        return batch.total + batch.discount * (value + bonus)

    def _critic_loss(self, batch: Batch, target: Tensor) -> tuple[Tensor, Tensor]:
        """Half the mean squared error, summed over the critics, and the figures in the order of `_CRITIC_FIGURES`."""
        value = self._judge(self.critics, batch.obs, batch.base_action, batch.judged)
        error = self.target_scale.to_output(value) - self.target_scale.to_output(target)
        loss = 0.5 * error.square().mean(1).sum()
        with torch.no_grad():
            figures = torch.stack([loss, value.mean(), (value.amax(0) - value.amin(0)).mean()])
        return loss, figures

    def _critic_step(self, *piece: Tensor) -> Tensor:
        batch = Batch(*piece)
        target = self._fast_target(batch)
        self.target_scale.take_in(target, self.critics, self.target_critics)
        loss, figures = self._fast_critic_loss(batch, target)
        self.critic_optimizer.step(torch.autograd.grad(loss, self.critic_optimizer.parameters))
        soft_update(self.target_critics, self.critics, self.cfg.tau)
        return figures

    def _actor_step(self, *piece: Tensor) -> Tensor:
        loss, figures = self._fast_actor_loss(Batch(*piece))
        self.actor_optimizer.step(torch.autograd.grad(loss, self.actor_optimizer.parameters))
        return figures

    def _value_for_actor(self, batch: Batch, residual_action: Tensor) -> Tensor:
        """What the actor climbs, [b]: the value, less what leaving the base policy costs.

        Source of the latter: TD3+BC, Fujimoto & Gu, "A Minimalist Approach to Offline Reinforcement Learning", 2021. Deviation: the
        weight is not relative to the size of the values.
        """
        judged = self._composed(batch.base_action, residual_action, batch.scale)
        value = self._judge(self.critics, batch.obs, batch.base_action, judged)
        value = value.amin(0) if self.cfg.actor_value == "min" else value.mean(0)
        return value + residual_penalty(residual_action, 1.0, self.cfg.actor_penalty)

    # State

    def set_progress(self, fraction: float) -> None:
        """No setting here follows the training's progress."""

    def policy_state_dict(self) -> State:
        """The deployed actor and observation statistics, by name."""
        return module_state(self.deployed)

    def load_policy_state_dict(self, state: State) -> None:
        """Take back what `policy_state_dict` gave. Raises `CheckpointError` where it does not fit."""
        load_module_state(self.policy, state, "the residual policy")
        if self._ema is not None:
            self._ema.restart()

    def replay_bytes(self, rows: int, kept_rows: int) -> tuple[int, int]:
        """See `types.HasReplay`."""
        buffer = self.buffer
        shown = self.demonstrations.num_written * self.demonstrations.row_bytes if self.demonstrations is not None else 0
        full = min(rows, buffer.num_rows + kept_rows) // buffer.segment_rows * buffer.segment_rows
        return full * buffer.row_bytes + shown, min(rows, buffer.segment_rows) * buffer.row_bytes

    def _optimizers(self) -> dict[str, FlatAdam]:
        return {"critics": self.critic_optimizer, "actor": self.actor_optimizer}

    def _modules(self) -> dict[str, torch.nn.Module]:
        modules = {"policy": self.policy, "critics": self.critics, "target_critics": self.target_critics}
        return modules | {"target_scale": self.target_scale, "noise": self.noise}

    def _generators(self) -> dict[str, torch.Generator]:
        return {"noise": self.noise.generator, "gates": self._gates, "sampling": self._sampling}

    def state_dict(self) -> State:
        """All that makes the following steps the same, replay buffer and demonstrations included.

        Not between `act` and `observe`.
        """
        return {
            "modules": {name: module_state(module) for name, module in self._modules().items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers().items()},
            "generators": {name: generator.get_state() for name, generator in self._generators().items()},
            "buffer": self.buffer.state_dict(),
            "residual_scale": self._residual_scale.clone(),
            "new_rows": self._new_rows,
            "owed": self._owed,
            "num_updates": self.num_updates,
            "num_actor_updates": self.num_actor_updates,
            "ema": self._ema.state_dict() if self._ema is not None else None,
            "demonstrations": self.demonstrations.state_dict() if self.demonstrations is not None else None,
        }

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave. Raises `CheckpointError` where it does not fit."""
        missing = sorted(_STATE - state.keys())
        if missing:
            raise CheckpointError(f"the learner's state lacks {', '.join(missing)}: it is not one of {type(self).__name__}")
        for kind, mine in (("modules", self._modules()), ("optimizers", self._optimizers()), ("generators", self._generators())):
            if state[kind].keys() != mine.keys():
                raise CheckpointError(f"the learner's {kind} differ: {sorted(state[kind].keys() ^ mine.keys())}")
        for name, module in self._modules().items():
            load_module_state(module, state["modules"][name], name.replace("_", " "))
        for name, optimizer in self._optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, generator in self._generators().items():
            generator.set_state(state["generators"][name].cpu())
        self.buffer.load_state_dict(state["buffer"])
        if state.get("demonstrations") is not None:  # files from before have none
            self.demonstrations = self.buffer.empty_like(state["demonstrations"]["num_rows"], "demonstrations")
            self.demonstrations.load_state_dict(state["demonstrations"])
            self.demonstrations.closed = True
        self._residual_scale.copy_(state["residual_scale"])
        self._new_rows, self._owed, self.num_updates = state["new_rows"], state["owed"], state["num_updates"]
        self.num_actor_updates = state.get("num_actor_updates", self.num_actor_updates)
        if state.get("ema") is None:  # files from before deployed the newest actor, and go on so
            self._ema, self.deployed = None, self.policy
        elif self._ema is not None:
            self._ema.load_state_dict(state["ema"])


_CRITIC_FIGURES = ("critic_loss", "q", "q_spread")
_STATE = {"modules", "optimizers", "generators", "buffer", "residual_scale", "new_rows", "owed", "num_updates"}


def _adam(name: str, module: torch.nn.Module, learning_rate: float, max_grad_norm: float) -> FlatAdam:
    named = [(f"{name}.{parameter}", p) for parameter, p in module.named_parameters()]
    return FlatAdam(named, learning_rate, max_grad_norm, _ADAM_EPSILON)
