"""The vec_env contract: a `gymnasium.vector.VectorEnv` whose arrays are torch tensors on one device."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.errors import ConfigError
from residual_rl.robots.arm import Arm
from residual_rl.robots.hardware_units import HardwareUnits
from residual_rl.robots.kinematics import KinematicChain
from residual_rl.types import Obs, State

_SEEDS = 1 << 62
"""Upper bound of the episode seeds that a caller gives, from which envs count on in 64 bits."""


class EpisodeSeeds:
    """The queue from which each env draws the seed of its next episode.

    Evaluation fills it with a fixed list. When the list is used up, an env draws -1: it has no episode and
    stays idle. Without a list the seeds are `start`, `start + 1`, …, in the order in which envs draw them. A
    new queue starts at 0, so that running the same program twice gives the same episodes; for other episodes,
    pass a seed to the first reset.
    """

    def __init__(self, start: int = 0):
        self._next = int(start)
        self._queue: deque[int] | None = None

    def use_counter(self, start: int) -> None:
        """Draw the seeds `start`, `start + 1`, … without end."""
        self._next, self._queue = int(start), None

    def use_list(self, seeds: Iterable[int]) -> None:
        """Draw each of `seeds` once, then -1."""
        self._queue = deque(int(s) for s in seeds)

    def draw(self, n: int) -> Tensor:
        """The next `n` seeds [n] int64."""
        if self._queue is None:
            first, self._next = self._next, self._next + n
            return torch.arange(first, first + n)
        seeds = [self._queue.popleft() if self._queue else -1 for _ in range(n)]
        return torch.tensor(seeds, dtype=torch.int64)

    def state_dict(self) -> State:
        """The counter and the rest of the list."""
        return {"next": self._next, "queue": None if self._queue is None else list(self._queue)}

    def load_state_dict(self, state: State) -> None:
        """Restore `state_dict()`."""
        self._next = int(state["next"])
        self._queue = None if state["queue"] is None else deque(state["queue"])


class VecEnv(gymnasium.vector.VectorEnv):
    """B envs stepped together.

    `step` takes actions [B, A] in [-1, 1] and returns `(obs, reward [B], terminated [B], truncated [B],
    info)`. Envs whose episode ended are reset in the same step. `info` contains full-shape tensors:

    - `final_obs`: the observation before any reset, which is the true last one where the mask `_final_obs`
      [B] is set;
    - `final_info`: metrics of the episode, valid where `_final_info` [B] is set: `seed`, `episode_return`,
      `episode_length`, `success_once`, `success_at_end`, and the task's metrics;
    - `reward_terms`: each reward term by name, [B];
    - `task_metrics`: the task's metrics of this step by name, [B];
    - `final_scenes`: `scenes()` before any reset, if an episode ended and the env can be rendered. An env
      whose frames are slow may leave it out unless `scenes` was called after the previous step;
    - `executed_action`: [B, A], if the env may execute other actions than it was sent.

    The tensors that `step` returns belong to the caller; later steps do not write to them.
    """

    # Gymnasium requires a plain class attribute here.
    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    num_envs: int
    """B."""
    device: torch.device
    """Device of all tensors."""
    max_episode_steps: int
    """Steps after which an episode is truncated."""
    control_hz: float
    """Policy steps per second of simulated time [Hz]."""
    action_unit_name: str = "rad"
    """The unit of `action_unit`: "rad" or "m"; "env unit" if the env does not say which."""
    action_unit: Tensor
    """[A]: the physical value of an action of 1, in `action_unit_name`."""
    action_centre: Tensor | None = None
    """[A]: what an action of 0 stands for, in `action_unit_name`, for envs of other programs: their own
    action is `action_centre + action_unit * action`."""
    residual_unit: Tensor | None = None
    """[A]: the action change of a residual of 1 at a scale of 1; None means 1. It is smaller than 1 where the
    action range is wider than a residual should be."""
    success_terminates: bool = True
    """Whether success ends an episode."""
    deterministic: bool = True
    """Whether an episode is a function of its seed and its actions alone, bit for bit."""
    episode_seeds: EpisodeSeeds
    """The seeds of the next episodes."""
    kinematics: KinematicChain | None = None
    """The kinematic chain from the world frame to the tool, if the env exposes it."""
    hardware: HardwareUnits | None = None
    """Joint names and units of the real robot's software, if the env models a real robot."""
    arm: Arm | None = None
    """Description of the arm and of its action space, if the env exposes it."""
    task_name: str = ""
    """The simulator's name of the task, for envs that cover more than one."""
    control_mode: str = ""
    """The simulator's name of the action space, for simulators that offer several."""
    software: Mapping[str, str] = MappingProxyType({})
    """Versions of Python and packages in the interpreter that steps the envs, if it is not this one."""
    can_restore: bool = False
    """Whether `snapshot` and `restore` work."""
    joint_step: Tensor | None = None
    """[J]: the largest change of the joint targets that a controller should command in one step [rad]."""

    @abstractmethod
    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        mask: Tensor | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Obs, dict[str, Any]]:
        """Start new episodes in the envs of `mask` [B] bool (default: all).

        Args:
            seed: an integer starts env i with `seed + i`, and later episodes count on from there; a sequence
                gives the seed of each env. Without it each env draws from `episode_seeds`, which starts at 0
                in a new env, so that the first reset gives the episodes 0, 1, … whenever the program runs.
            mask: [B] bool, the envs to reset. The first reset must be of all envs.
            options: `{"episode": {name: [n, …]}}` starts the n episodes with these draws, named as in
                `episode`, instead of those of their seeds.
        """

    @abstractmethod
    def step(
        self, actions: Tensor, mask: Tensor | None = None
    ) -> tuple[Obs, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Execute `actions` [B, A] in the envs of `mask` [B] bool (default: all).

        The other envs do not advance, and their reward is 0. Actions may also be a NumPy array; the results
        are tensors.
        """

    @abstractmethod
    def state_dict(self) -> State:
        """The state that determines all further steps: physics, counters, episode seeds."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Restore `state_dict()` in an env with the same settings."""

    def snapshot(self, env_ids: Tensor) -> Obs:  # noqa: ARG002
        """The running episodes of the envs `env_ids` [n] as they are now: copies, by name, [n, …] each."""
        raise ConfigError("this env cannot be restored to a state of an earlier episode")

    def restore(self, env_ids: Tensor, snapshot: Obs) -> Obs:  # noqa: ARG002
        """Continue the episodes of a `snapshot` [n, …] in the envs `env_ids` [n] (ascending), in place of
        their own.

        Returns the observation of all envs.
        """
        raise ConfigError("this env cannot be restored to a state of an earlier episode")

    @property
    def active(self) -> Tensor:
        """[B] bool: the envs that have an episode; the others (seed -1) stay idle."""
        return torch.ones(self.num_envs, dtype=torch.bool, device=self.device)

    @property
    def episode(self) -> Obs:
        """The draws of the current episodes by name, [B, …] each; empty if the env does not expose them."""
        return {}

    def env_states(self) -> Obs:
        """The simulator's state of each env by name, [B, S] each; empty if the env does not expose it."""
        return {}

    def targets_to_actions(self, targets: Tensor, obs: Obs) -> Tensor:  # noqa: ARG002
        """The actions [b, K, A] in [-1, 1] that command the joint `targets` [b, K, J] in sequence.

        If an action is clipped, the next ones make up for the difference.

        Args:
            targets: joint targets [b, K, J] in [rad].
            obs: observations before the first action, [b, …] each.

        Raises:
            ConfigError: the actions do not command joint targets.
        """
        raise ConfigError("this env's actions are not joint targets")

    def steps_to_actions(self, steps: Tensor, obs: Obs) -> Tensor:
        """The actions [b, A] that change the joint targets in `obs` ([b, …]) by `steps` [b, J] in [rad]."""
        return self.targets_to_actions((obs["joint_target"].double() + steps)[:, None], obs)[:, 0]

    def actions_to_targets(self, actions: Tensor, obs: Obs) -> Tensor:  # noqa: ARG002
        """The joint targets [b, K, J] in [rad] that `actions` [b, K, A] command in sequence.

        `obs` are the observations before the first action, [b, …] each. Raises `ConfigError` if the actions
        do not command joint targets.
        """
        raise ConfigError("this env's actions are not joint targets")

    def _set_spaces(self, observations: spaces.Dict) -> None:
        """Set the spaces of one env, whose observations are `observations`, and those of all envs."""
        self.single_observation_space = observations
        self.single_action_space = spaces.Box(-1.0, 1.0, (len(self.action_unit),), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def _to_reset(
        self, seed: int | Sequence[int] | None, mask: Tensor | None, is_first: bool
    ) -> tuple[Tensor, Tensor]:
        """The envs [n] int64 to reset, and the seeds [n] int64 of their new episodes."""
        if mask is None:
            mask = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        elif is_first:
            raise ConfigError("the first reset must be of all envs: leave out `mask`")
        env_ids = mask.nonzero().flatten()
        if seed is None:
            seeds = self.episode_seeds.draw(len(env_ids))
        elif isinstance(seed, int | np.integer):
            _check_seed(int(seed))
            seeds = seed + env_ids.cpu()
            self.episode_seeds.use_counter(seed + self.num_envs)
        else:
            for one in seed:
                _check_seed(int(one), least=-1)  # -1 leaves an env without an episode
            seeds = torch.as_tensor(seed, dtype=torch.int64)
            if seeds.shape != env_ids.shape:
                raise ConfigError(f"{len(env_ids)} env(s) are reset but {len(seeds)} seed(s) were given")
        return env_ids, seeds.to(self.device)

    def _to_execute(self, actions: Tensor, is_first: bool) -> Tensor:
        """The actions [B, A] float32 of a step on the env's device; `is_first` if there was no reset."""
        if is_first:
            raise ConfigError("step was called before reset")
        actions = torch.as_tensor(actions, dtype=torch.float32, device=self.device)
        if actions.shape != self.action_space.shape:
            raise ConfigError(
                f"actions must have shape {self.action_space.shape}, not {tuple(actions.shape)}"
            )
        return actions

    def observations(self) -> Obs:
        """The current observation of all envs."""
        raise NotImplementedError

    @property
    def model(self) -> Any:
        """The simulator's compiled model, shared by all envs (MuJoCo: `mujoco.MjModel`)."""
        raise ConfigError(
            "this env has no MuJoCo model, which the viewer shows; `residual-rl view TASK --cameras DIR` "
            "writes images, and `--video FILE` a video, of any env that can be rendered"
        )

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras of `render_scenes`; empty if it only has its default view."""
        return ()

    def scenes(self) -> Tensor:
        """[B, S]: the state needed to render each env as it is now."""
        raise ConfigError("this env cannot be rendered: it has no `scenes`")

    def render_scenes(
        self,
        scenes: Tensor,  # noqa: ARG002
        size: tuple[int, int],  # noqa: ARG002
        camera: str | None = None,  # noqa: ARG002
    ) -> NDArray[np.uint8]:
        """Render `scenes` [N, S] as images [N, H, W, 3] uint8 of `size` (H, W).

        The default `camera` is the one with the best overview.
        """
        raise ConfigError("this env cannot be rendered: it has no `render_scenes`")

    @property
    def step_info_names(self) -> dict[str, tuple[str, ...]]:
        """The names in `reward_terms` and `task_metrics` of the `info` that `step` returns, after a reset.

        Empty if the env only learns them in its first step.
        """
        return {"reward_terms": (), "task_metrics": ()}

    def set_training_progress(
        self,
        fraction: float,  # noqa: ARG002
        success_rate: float,  # noqa: ARG002
        episodes: int,  # noqa: ARG002
    ) -> dict[str, float]:
        """Update the task's curriculum; returns metrics to log.

        Args:
            fraction: share of the training done, in [0, 1].
            success_rate: success rate of the last 100 episodes.
            episodes: number of episodes that have ended.
        """
        return {}


def _check_seed(seed: int, least: int = 0) -> None:
    """Raise `ConfigError` for a seed that is negative or does not leave room to count on in 64 bits."""
    if not least <= seed < _SEEDS:
        raise ConfigError(f"the seed of an episode must be from 0 to {_SEEDS - 1}, not {seed}")
