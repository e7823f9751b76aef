"""ManiSkill envs as a `VecEnv`: termination, truncation, resets, seeds and resuming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.envs.action_history import ActionHistory, warn_unless_equal
from residual_rl.envs.episodes import RunningEpisodes
from residual_rl.envs.maniskill.relative_poses import RELATIVE_POSES, RelativePoses
from residual_rl.envs.maniskill.sim_env import Step
from residual_rl.envs.maniskill.spec import EnvDescription
from residual_rl.envs.spaces import array_space
from residual_rl.envs.vec_env import EpisodeSeeds, VecEnv
from residual_rl.envs.workers.shared_memory import ArraySpec
from residual_rl.errors import ConfigError
from residual_rl.registry import check_metric_names
from residual_rl.types import Obs, State, check_finite
from residual_rl.utils.seeding import simulator_seeds

_STATE_KINDS = ("actors/", "articulations/")
"""Beginnings of the names of the states that can be set."""

Renderer = Callable[[Tensor, tuple[int, int], str | None], NDArray[np.uint8]]
"""Renders states [N, S] of `SimEnvs.states` as images [N, H, W, 3] of a size (H, W).

The last argument is the name of a camera; None is the task's default.
"""


class SimEnvs(Protocol):
    """B ManiSkill envs: `ManiSkillEnv` on a GPU, `ParallelEnvs` on the CPU.

    The returned tensors belong to the caller.
    """

    num_envs: int
    device: torch.device
    deterministic: bool
    remote: bool
    """Whether other processes step the envs."""
    description: EnvDescription

    def reset(self, env_ids: Tensor, seeds: Tensor) -> None: ...

    def step(self, actions: Tensor, active: Tensor) -> Step: ...

    def observations(self) -> Obs: ...

    def states(self) -> Tensor: ...

    def set_states(self, env_ids: Tensor, states: Tensor) -> None: ...

    def close(self) -> None: ...


class ManiSkillVecEnv(VecEnv):
    """B envs of a ManiSkill task, with their observations and, where objects have poses, `relative_poses`.

    On the CPU an episode is a function of its seed and its actions, and a saved state consists of these.
    Loading it replays the running episodes and continues them bit for bit. The GPU simulation is not
    deterministic (`deterministic` is False): loading a state starts new episodes.

    With the GPU simulation all tensors are on its device. A step transfers three flags from it: whether the
    actions are finite, whether the results are finite, and whether an episode ended. Starting an episode
    transfers more.

    Args:
        sim: the simulated envs.
        max_episode_steps: steps after which an episode is truncated.
        ignore_terminations: whether episodes continue after success or failure.
        renderer: renders states.
    """

    def __init__(self, sim: SimEnvs, max_episode_steps: int, ignore_terminations: bool, renderer: Renderer):
        # properties of the simulated envs
        description = sim.description
        check_metric_names(f"ManiSkill's {description.env_id}", description.metrics)
        self._sim, self._renderer = sim, renderer
        self.remote = sim.remote
        self.num_envs, self.device, self.deterministic = sim.num_envs, sim.device, sim.deterministic
        self.max_episode_steps, self._ignore_terminations = max_episode_steps, ignore_terminations
        self.success_terminates = not ignore_terminations
        self.control_hz, self.control_mode, self.robot = (
            description.control_hz,
            description.control_mode,
            description.robot,
        )
        self.task_name, self.arm = description.env_id, description.arm
        self.action_unit = torch.tensor(description.action_unit, device=self.device)
        self.action_unit_name = description.action_unit_name
        self._relative_poses = RelativePoses(description.observations, self.device)
        # the spaces, of one env and of all
        observations = dict(description.observations)
        if self._relative_poses.size:
            observations[RELATIVE_POSES] = ArraySpec((self._relative_poses.size,), "float32")
        boxes = {name: array_space(array.shape, array.dtype) for name, array in observations.items()}
        self._set_spaces(spaces.Dict(boxes))
        # the state of the running episodes
        self.episode_seeds = EpisodeSeeds()
        self._episodes = RunningEpisodes(self.num_envs, self.device)
        self._can_wait = self.can_restore = self.device.type == "cpu"
        self._played_steps = torch.zeros_like(self._episodes.length)
        """[B]: steps of each env's episode since it was reset, or restored from a snapshot."""
        self._start_state = torch.zeros(self.num_envs, description.state_size - 1, dtype=torch.float64)
        self._has_start_state = torch.zeros(self.num_envs, dtype=torch.bool)
        """[B, S] and [B]: the state from which an env was restored, and whether it was."""
        self._history = ActionHistory(self.num_envs, len(self.action_unit))
        """Empty if the envs are not deterministic."""
        self._obs: Obs = {}
        self._some_idle = True
        self._renders = False
        """Whether `scenes` was called; `step` then returns `final_scenes`."""

    # --- the contract ---------------------------------------------------------------------------------------

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        mask: Tensor | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Obs, dict[str, Any]]:
        """See `VecEnv.reset`. Its only option is `env_states`: {name: [n, …]}, the states of the simulator in
        which the n episodes start, by ManiSkill's names (`actors/cube`, …). Such episodes cannot be resumed.
        """
        unknown = sorted(set(options or {}) - {"env_states"})
        if unknown:
            raise ConfigError(f"the only option of reset is 'env_states'; got {', '.join(unknown)}")
        states = self._flat_states((options or {}).get("env_states"))
        env_ids, seeds = self._to_reset(seed, mask, is_first=not self._obs)
        self._start_episodes(env_ids, seeds)
        if states is not None:
            self._sim.set_states(env_ids, states)
            self._obs = self._seen(self._sim.observations())
        return dict(self._obs), {"seed": self._episodes.seed.clone()}

    def step(
        self, actions: Tensor, mask: Tensor | None = None
    ) -> tuple[Obs, Tensor, Tensor, Tensor, dict[str, Any]]:
        actions = self._to_execute(actions, is_first=not self._obs)
        with self._context(actions):
            check_finite("action", actions)
        active = self.active
        if mask is not None:
            if not self._can_wait:
                raise ConfigError(
                    "ManiSkill's GPU simulation cannot step a subset of the envs: leave out mask"
                )
            active = active & mask
        # execute the actions
        action = actions.clamp(-1.0, 1.0) * active[:, None]  # idle envs of a GPU simulation get zeros
        step = self._sim.step(action, active)
        reward, success = step.reward * active, step.success & active
        obs = self._seen(step.obs)

        # termination and truncation
        terminated = (success | (step.fail & active)) & (not self._ignore_terminations)
        truncated = (self._episodes.length + active >= self.max_episode_steps) & ~terminated
        ended = terminated | truncated
        any_ended = self._check(obs, reward, action, ended)
        if self.deterministic:  # a saved state consists of the actions
            self._history.append(action, active)
            self._played_steps = self._played_steps + active
        self._episodes.advance(active, reward, success)
        info = self._episodes.info({"env": reward}, step.metrics, obs, success, ended)
        self._obs = obs
        # reset the envs whose episode ended
        if any_ended:
            if self._renders:
                info["final_scenes"] = self.scenes()
            env_ids = ended.nonzero().flatten()
            self._start_episodes(env_ids, self.episode_seeds.draw(len(env_ids)).to(self.device))
        return dict(self._obs), reward, terminated, truncated, info

    @property
    def active(self) -> Tensor:
        return self._episodes.active

    def observations(self) -> Obs:
        return dict(self._obs)

    @property
    def step_info_names(self) -> dict[str, tuple[str, ...]]:
        return {"reward_terms": ("env",), "task_metrics": self._sim.description.metrics}

    def env_states(self) -> Obs:
        return {"maniskill": self._sim.states()[:, 1:]}

    def scenes(self) -> Tensor:
        self._renders = True  # from now on `step` also returns the scenes of ended episodes
        return self._sim.states()

    def render_scenes(
        self, scenes: Tensor, size: tuple[int, int], camera: str | None = None
    ) -> NDArray[np.uint8]:
        return self._renderer(scenes, size, camera)

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ARG002
        self._sim.close()

    # --- going back to earlier states -----------------------------------------------------------------------

    def snapshot(self, env_ids: Tensor) -> Obs:
        """See `VecEnv.snapshot`. PhysX restores positions and velocities but not its contacts, so that an
        episode goes on almost but not exactly as before."""
        if not self.can_restore:
            return super().snapshot(env_ids)
        return {"state": self._sim.states()[env_ids, 1:], **self._episodes.snapshot(env_ids)}

    def restore(self, env_ids: Tensor, snapshot: Obs) -> Obs:
        if not self.can_restore:
            return super().restore(env_ids, snapshot)
        self._start_episodes(env_ids, snapshot["seed"])
        self._episodes.restore(env_ids, snapshot)
        self._sim.set_states(env_ids, snapshot["state"])
        self._start_state[env_ids] = snapshot["state"]
        self._has_start_state[env_ids] = True
        self._obs = self._seen(self._sim.observations())
        return dict(self._obs)

    # --- resuming -------------------------------------------------------------------------------------------

    def state_dict(self) -> State:
        actions, executed = self._history.played(self._played_steps)
        return {
            "episode_seeds": self.episode_seeds.state_dict(),
            "episodes": self._episodes.state_dict(),
            "obs": {name: value.clone() for name, value in self._obs.items()},
            "actions": actions,
            "executed": executed,
            "played_steps": self._played_steps.clone(),
            "start_state": self._start_state.clone(),
            "has_start_state": self._has_start_state.clone(),
        }

    def load_state_dict(self, state: State) -> None:
        self._episodes.load_state_dict(state["episodes"])
        self.episode_seeds.load_state_dict(state["episode_seeds"])
        if not self.deterministic:
            # the GPU simulation cannot restore an episode, so start new ones
            everything = torch.arange(self.num_envs, device=self.device)
            self._start_episodes(everything, self.episode_seeds.draw(self.num_envs).to(self.device))
            return
        self._some_idle = not bool(self.active.all())
        self._history.load(state["actions"], state["executed"])
        self._played_steps = state["played_steps"]
        self._start_state, self._has_start_state = (
            state["start_state"].clone(),
            state["has_start_state"].clone(),
        )
        if not state["obs"]:  # saved before the first reset
            return
        # replay the running episodes from their seeds or from the states that they were restored from
        running = self.active.nonzero().flatten()
        self._sim.reset(running, simulator_seeds(self._episodes.seed[running]))
        restored = (self.active & self._has_start_state).nonzero().flatten()
        if len(restored):
            self._sim.set_states(restored, self._start_state[restored])
        for actions, executed in zip(*self._history.played(self._played_steps), strict=True):
            self._sim.step(actions, executed)
        self._obs = self._relative_poses.add(
            {name: value.to(self.device) for name, value in state["obs"].items()}
        )
        obs = self._seen(self._sim.observations())
        warn_unless_equal(obs, self._obs, self.task_name)
        self._obs = obs

    # --- parts ----------------------------------------------------------------------------------------------

    def _start_episodes(self, env_ids: Tensor, seeds: Tensor) -> None:
        # a negative seed leaves its env idle
        begins = seeds >= 0
        self._sim.reset(env_ids[begins], simulator_seeds(seeds[begins]))
        self._episodes.begin(env_ids, seeds)
        self._played_steps = self._played_steps.index_fill(0, env_ids, 0)
        self._has_start_state[env_ids] = False
        self._some_idle = not bool(self.active.all())
        self._history.forget_ended(self._played_steps)
        self._obs = self._seen(self._sim.observations())

    def _flat_states(self, states: Obs | None) -> Tensor | None:
        """The parts of `states` [n, …] side by side, in the simulator's order."""
        if states is None:
            return None
        parts = dict(self._sim.description.state_parts)
        found = {name: value.shape[1] for name, value in states.items() if name.startswith(_STATE_KINDS)}
        if found != parts:
            named = sorted(name for name in {*found, *parts} if found.get(name) != parts.get(name))
            raise ConfigError(
                f"the states are not those of {self.task_name} with robot {self.robot}: {', '.join(named)} "
                "is missing there or here, or has another size; they need the same task and robot"
            )
        return torch.cat([states[name] for name in parts], 1)

    def _seen(self, obs: Obs) -> Obs:
        """`obs` with the relative poses; idle envs keep their last observation."""
        obs = self._relative_poses.add(obs)
        if not self._obs or not self._some_idle:
            return obs
        idle = ~self.active
        return {
            name: torch.where(idle.reshape(-1, *[1] * (value.ndim - 1)), self._obs[name], value)
            for name, value in obs.items()
        }

    def _check(self, obs: Obs, reward: Tensor, action: Tensor, ended: Tensor) -> bool:
        """Whether an episode ended. Raises `NonFiniteError` if an observation or reward is not finite."""
        floats = {"reward": reward[:, None]} | {
            name: value for name, value in obs.items() if value.is_floating_point()
        }
        # transfer both flags from the device at once; look for the culprit only after a failure
        finite = torch.isfinite(torch.cat([value.flatten(1) for value in floats.values()], 1).sum())
        any_ended, all_finite = torch.stack([ended.any(), finite]).tolist()
        if not all_finite:
            with self._context(action):
                for name, value in floats.items():
                    check_finite(name, value)
        return bool(any_ended)

    def _context(self, action: Tensor) -> AbstractContextManager[None]:
        """See `RunningEpisodes.context`; what is known of the steps before are the actions."""
        return self._episodes.context(action, lambda: self._history.dump(self._played_steps))
