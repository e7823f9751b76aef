"""The vec_env of a `Task` on a `Physics` backend: commands, rewards, episode ends and resets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.config import SafetyLimitsCfg
from residual_rl.envs.episodes import RunningEpisodes
from residual_rl.envs.task import Physics, Quantities, Task
from residual_rl.envs.vec_env import EpisodeSeeds, VecEnv
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.robots.safety_limits import SafetyLimits
from residual_rl.types import Obs, State, check_finite


class TaskEnv(VecEnv):
    """B envs of `task` on `physics`.

    The task's camera images [B, H, W, 3] uint8 are observations under the cameras' names.
    """

    def __init__(self, task: Task, physics: Physics):
        self.task = task
        self.physics = physics
        self.num_envs = physics.num_envs
        self.device = physics.device
        self.max_episode_steps = task.max_episode_steps
        self.control_hz = physics.control_hz
        self.deterministic = physics.deterministic
        self.action_unit = task.action_unit
        self.residual_unit = task.residual_unit
        self.joint_step = task.joint_step
        self.hardware = task.hardware
        images = {name: spaces.Box(0, 255, (*task.image_size, 3), np.uint8) for name in task.obs_cameras}
        self._set_spaces(spaces.Dict({**task.observation_space().spaces, **images}))
        self.can_restore = True
        self.limits: SafetyLimits | None = None
        """Limits of the joint targets; set before the first reset."""
        self.episode_seeds = EpisodeSeeds()
        self._episodes = RunningEpisodes(self.num_envs, self.device)
        self._hold_steps = torch.zeros_like(self._episodes.length)
        self._episode: Quantities = {}
        self._command: Quantities = {}
        self._memory: Quantities = {}
        self._obs: Obs = {}

    # --- the contract ---

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        mask: Tensor | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Obs, dict[str, Any]]:
        unknown = sorted(set(options or {}) - {"episode"})
        if unknown:
            raise ConfigError(f"the only option of reset is 'episode'; got {', '.join(unknown)}")
        env_ids, seeds = self._to_reset(seed, mask, is_first=not self._obs)
        self._start_episodes(env_ids, seeds, (options or {}).get("episode"))
        if self._obs:
            self._obs = self._observe_after_reset(self._obs, env_ids)
        else:
            self._obs = self._observe(self._quantities())
        return dict(self._obs), {"seed": self._episodes.seed.clone()}

    def step(
        self, actions: Tensor, mask: Tensor | None = None
    ) -> tuple[Obs, Tensor, Tensor, Tensor, dict[str, Any]]:
        # Check the action.
        actions = self._to_execute(actions, is_first=not self._obs)
        with self._context(actions, self.physics.state_dict):
            check_finite("action", actions)
        action = actions.clamp(-1.0, 1.0)

        # Step the physics of the envs that have an episode and are in `mask`; others would only cost time.
        command = self._command
        before = {**self._last, **self._episode, **command, **self._memory}
        wanted = target = self.task.joint_target(action, before)
        if self.limits is not None:
            target = self.limits(target, command["joint_target"], command["target_step"]).target
        servo_target = self.task.servo_target(target, before)
        active = self.active if mask is None else self.active & mask
        with self._context(action, self.physics.state_before):
            sent = self.physics.step(servo_target, None if active.all() else active.nonzero().flatten())
        if sent is not None:  # an arm may have limits of its own
            target = torch.where(sent == servo_target, target, sent + (target - servo_target))
        action = self._executed(action, wanted, target)
        self._command = {"joint_target": target, "action": action}
        if self.limits is not None:
            self._command["target_step"] = target - command["joint_target"]
        if mask is not None:
            self._command = {
                name: torch.where(mask[:, None], value, command[name])
                for name, value in self._command.items()
            }

        # What the task remembers of the step.
        q = {**self._quantities(), "step": self._episodes.length + active}
        for name, value in self.task.remember(q, before).items():
            q[name] = torch.where(active.reshape(-1, *[1] * (value.dim() - 1)), value, self._memory[name])
        self._memory = {name: q[name] for name in self._memory}

        # Success: the condition must hold for some consecutive steps.
        held = (self._hold_steps + 1) * (self.task.holds(q) & active)
        self._hold_steps = held if mask is None else torch.where(mask, held, self._hold_steps)
        q["hold_steps"] = self._hold_steps
        q["success"] = self._hold_steps >= self.task.success_hold_steps

        # Reward, metrics and observation. Add the terms one by one, since torch.sum's order depends on B.
        terms = {name: value.float() for name, value in self.task.reward_terms(q).items()}
        if mask is not None:
            terms = {name: torch.where(mask, value, 0.0) for name, value in terms.items()}
        metrics = {name: value.float() for name, value in self.task.metrics(q).items()}
        reward = functools.reduce(torch.add, terms.values())
        obs = self._observe(q)

        # Check all of them at once, since each check synchronises with a GPU; then name the culprit.
        floats = {"reward": reward[:, None]}
        floats |= {name: value for name, value in obs.items() if value.is_floating_point()}
        total = torch.cat([value.flatten(1) for value in floats.values()], 1).sum()
        if not torch.isfinite(total):
            with self._context(action, self.physics.state_before):
                for name, value in floats.items():
                    check_finite(name, value)

        # Count the step.
        self._episodes.advance(active, reward, q["success"])
        terminated = q["success"]
        truncated = (self._episodes.length >= self.max_episode_steps) & ~terminated
        ended = terminated | truncated
        info = self._episodes.info(terms, metrics, obs, q["success"], ended)
        if self.limits is not None or sent is not None:
            info["executed_action"] = action

        # Reset the envs whose episode ended.
        if ended.any():
            env_ids = ended.nonzero().flatten()
            info["final_scenes"] = self.scenes()
            self._start_episodes(env_ids, self.episode_seeds.draw(len(env_ids)).to(self.device))
            obs = self._observe_after_reset(obs, env_ids)
        self._obs = obs
        return dict(obs), reward, terminated, truncated, info

    @property
    def model(self) -> Any:
        return self.physics.model

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.model.camera(i).name for i in range(self.model.ncam))

    @property
    def active(self) -> Tensor:
        return self._episodes.active

    @property
    def episode(self) -> Obs:
        return dict(self._episode)

    @property
    def step_info_names(self) -> dict[str, tuple[str, ...]]:
        q = {**self._quantities(), "success": self._hold_steps > 0}
        return {
            "reward_terms": tuple(self.task.reward_terms(q)),
            "task_metrics": tuple(self.task.metrics(q)),
        }

    def env_states(self) -> Obs:
        return self.physics.env_states()

    def targets_to_actions(self, targets: Tensor, obs: Obs) -> Tensor:
        return self.task.targets_to_actions(targets, obs)

    def actions_to_targets(self, actions: Tensor, obs: Obs) -> Tensor:
        return self.task.actions_to_targets(actions, obs)

    def observations(self) -> Obs:
        return dict(self._obs)

    def set_training_progress(self, fraction: float, success_rate: float, episodes: int) -> dict[str, float]:
        return self.task.set_training_progress(fraction, success_rate, episodes)

    def scenes(self) -> Tensor:
        return self.physics.scenes()

    def render_scenes(
        self, scenes: Tensor, size: tuple[int, int], camera: str | None = None
    ) -> NDArray[np.uint8]:
        camera = camera or self.task.best_camera
        return self.physics.render(scenes, (camera,), size, smooth=True)[camera]

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ARG002
        self.physics.close()

    # --- going back to earlier states ---

    def snapshot(self, env_ids: Tensor) -> Obs:
        return {
            name: value[env_ids]
            for group, values in self._rows().items()
            for name, value in _with_prefix(group, values).items()
        } | _with_prefix("episodes", self._episodes.snapshot(env_ids))

    def restore(self, env_ids: Tensor, snapshot: Obs) -> Obs:
        groups: dict[str, Obs] = {}
        for path, value in snapshot.items():
            group, _, name = path.partition("/")
            groups.setdefault(group, {})[name] = value
        # The model fields that vary by episode are not part of the physics state: the reset writes them.
        self.physics.reset(env_ids, groups["episode"])
        self.physics.set_env_states(env_ids, groups["physics"])
        self._episodes.restore(env_ids, groups["episodes"])
        self._episode = _with_rows(self._episode, env_ids, groups["episode"])
        self._command = _with_rows(self._command, env_ids, groups["command"])
        self._memory = _with_rows(self._memory, env_ids, groups.get("memory", {}))
        self._hold_steps = self._hold_steps.index_copy(0, env_ids, groups["counters"]["hold_steps"])
        self._obs = self._observe_after_reset(self._obs, env_ids)
        return dict(self._obs)

    def _rows(self) -> dict[str, Quantities]:
        """The tensors [B, …] of a snapshot, by group and name."""
        return {
            "physics": self.physics.env_states(),
            "episode": self._episode,
            "command": self._command,
            "memory": self._memory,
            "counters": {"hold_steps": self._hold_steps},
        }

    # --- resuming ---

    def state_dict(self) -> State:
        return {
            "physics": self.physics.state_dict(),
            "task": self.task.state_dict(),
            "episode_seeds": self.episode_seeds.state_dict(),
            "episodes": self._episodes.state_dict(),
            "hold_steps": self._hold_steps.clone(),
            "episode": {name: value.clone() for name, value in self._episode.items()},
            "command": {name: value.clone() for name, value in self._command.items()},
            "memory": {name: value.clone() for name, value in self._memory.items()},
        }

    def load_state_dict(self, state: State) -> None:
        self._episodes.load_state_dict(state["episodes"])
        self._hold_steps = state["hold_steps"].to(self.device)
        self.task.load_state_dict(state["task"])
        self.episode_seeds.load_state_dict(state["episode_seeds"])
        self._episode = {name: value.to(self.device) for name, value in state["episode"].items()}
        self._command = {name: value.to(self.device) for name, value in state["command"].items()}
        # checkpoints of earlier versions have no memory, as their tasks had none
        self._memory = {name: value.to(self.device) for name, value in state.get("memory", {}).items()}
        # The model fields that vary by episode are not part of the physics state: the reset writes them.
        self.physics.reset(torch.arange(self.num_envs, device=self.device), self._episode)
        self.physics.load_state_dict(state["physics"])
        self._obs = self._observe(self._quantities())

    # --- parts ---

    def _start_episodes(self, env_ids: Tensor, seeds: Tensor, given: Quantities | None = None) -> None:
        drawn = self.task.randomize(seeds)
        for name, value in (given or {}).items():
            if name not in drawn:
                raise UnknownNameError("draw of an episode", name, drawn)
            if value.shape != drawn[name].shape:
                shape = tuple(drawn[name].shape)
                raise ConfigError(f"the episodes' {name} must have shape {shape}, not {tuple(value.shape)}")
            drawn[name] = value.to(drawn[name])
        self.physics.reset(env_ids, drawn)
        if len(env_ids) == self.num_envs:
            self._episode = drawn
        else:  # into copies, because the tensors of earlier steps belong to the caller
            self._episode = _with_rows(self._episode, env_ids, drawn)
        start = self.physics.read()["joint_position"]
        zero = torch.zeros(self.num_envs, len(self.action_unit), device=self.device)
        fresh = {"joint_target": start, "action": zero}
        if self.limits is not None:
            fresh["target_step"] = torch.zeros_like(start)
        if not self._command:
            self._command = fresh
        else:
            rows = {name: value[env_ids] for name, value in fresh.items()}
            self._command = _with_rows(self._command, env_ids, rows)
        self._episodes.begin(env_ids, seeds)
        self._hold_steps = self._hold_steps.index_fill(0, env_ids, 0)
        memory = self.task.begin_memory(self._quantities())
        if self._memory:
            memory = _with_rows(self._memory, env_ids, {n: value[env_ids] for n, value in memory.items()})
        self._memory = memory

    def _executed(self, action: Tensor, wanted: Tensor, target: Tensor) -> Tensor:
        """The actions [B, A] that command `target` [B, J] in place of `wanted`; the given ones where these
        are equal, and where an action only counts later."""
        changed = (target != wanted).any(1, keepdim=True)
        if self.task.action_delay or not changed.any():
            return action
        executed = self.task.targets_to_actions(target[:, None], {**self._obs, **self._command})[:, 0]
        return torch.where(changed, executed, action)

    def _quantities(self) -> Quantities:
        self._last = self.physics.read()
        counters = {
            "seed": self._episodes.seed,
            "step": self._episodes.length,
            "hold_steps": self._hold_steps,
        }
        return {**self._last, **self._episode, **self._command, **self._memory, **counters}

    def _observe(self, q: Quantities) -> Obs:
        return {**self.task.observe(q), **self._images(slice(None))}

    def _observe_after_reset(self, obs: Obs, env_ids: Tensor) -> Obs:
        """The observation after a reset of the envs `env_ids`; images of other envs are taken from `obs`."""
        fresh = self._images(env_ids)
        images = {name: obs[name].index_copy(0, env_ids, image) for name, image in fresh.items()}
        return {**self.task.observe(self._quantities()), **images}

    def _images(self, env_ids: Tensor | slice) -> Obs:
        """The images of the observed cameras in the envs `env_ids`."""
        if not self.task.obs_cameras:
            return {}
        scenes = self.physics.scenes()[env_ids]
        images = self.physics.render(scenes, self.task.obs_cameras, self.task.image_size)
        return {name: torch.from_numpy(image).to(self.device) for name, image in images.items()}

    def _context(self, action: Tensor, state_before: Callable[[], State]) -> AbstractContextManager[None]:
        """See `RunningEpisodes.context`; what is known of the steps before is the state of the physics."""
        return self._episodes.context(action, lambda: {"state_before": state_before()})


def _with_rows(values: Quantities, env_ids: Tensor, rows: Quantities) -> Quantities:
    """Copies of `values` [B, …] with `rows` [n, …] in the envs `env_ids` [n]."""
    return {name: value.index_copy(0, env_ids, rows[name]) for name, value in values.items()}


def _with_prefix(prefix: str, values: Quantities) -> Quantities:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def limit_targets(env: VecEnv, cfg: SafetyLimitsCfg) -> None:
    """Apply limits to the joint targets that `env` commands.

    Raises:
        ConfigError: the env's actions are not joint targets of an arm in its own simulator.
    """
    if not isinstance(env, TaskEnv) or env.hardware is None:
        raise ConfigError(
            "safety needs a task of an arm with joint targets, such as so101-paper: leave out --safety"
        )
    env.limits = SafetyLimits(cfg, env.hardware, env.control_hz, env.kinematics)
