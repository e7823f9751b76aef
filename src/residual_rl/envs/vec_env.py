"""The vec_env contract: a `gymnasium.vector.VectorEnv` whose arrays are torch tensors on one device."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.errors import ConfigError
from residual_rl.robots.arm import Arm
from residual_rl.robots.hardware_units import HardwareUnits
from residual_rl.robots.kinematics import KinematicChain
from residual_rl.types import Obs, State


class EpisodeSeeds:
    """The queue that each world draws its next episode's seed from.

    Evaluation fills it with a fixed list; when that is empty a world gets -1: it has no episode and stands still.
    Without a list the seeds are endless: `start`, `start + 1`, … in the order in which worlds ask. A fresh queue counts from 0,
    so that equal programs run equal episodes: for others, seed the first reset.
    """

    def __init__(self, start: int = 0):
        self._next = int(start)
        self._queue: deque[int] | None = None

    def use_counter(self, start: int) -> None:
        """Hand out `start`, `start + 1`, … without end."""
        self._next, self._queue = int(start), None

    def use_list(self, seeds: Iterable[int]) -> None:
        """Hand out `seeds`, each once, then -1."""
        self._queue = deque(int(s) for s in seeds)

    def draw(self, n: int) -> Tensor:
        """The next `n` seeds [n] int64."""
        if self._queue is None:
            first, self._next = self._next, self._next + n
            return torch.arange(first, first + n)
        return torch.tensor(
            [self._queue.popleft() if self._queue else -1 for _ in range(n)], dtype=torch.int64
        )

    def state_dict(self) -> State:
        return {"next": self._next, "queue": None if self._queue is None else list(self._queue)}

    def load_state_dict(self, state: State) -> None:
        self._next = int(state["next"])
        self._queue = None if state["queue"] is None else deque(state["queue"])


class VecEnv(gymnasium.vector.VectorEnv):
    """B worlds stepped together.

    `step` takes actions [B, A] in [-1, 1] and returns `(obs, reward [B], terminated [B], truncated [B], info)`.
    Worlds whose episode ended are reset in the same step; `info` then holds, as full-shape tensors,

    - `final_obs`: the observation before any reset, and so the true last one where the mask `_final_obs` [B] is true;
    - `final_info`: the episode's figures, valid where `_final_info` [B] is true: `seed`, `episode_return`, `episode_length`,
      `success_once`, `success_at_end`, and the task's own;
    - `reward_terms`: each term of the reward by name, [B];
    - `task_metrics`: the task's figures of this step by name, [B];
    - `final_scenes`: `scenes()` before any reset, where an env can be drawn and an episode ended.

    Tensors in what `step` returns belong to the caller: later steps do not write into them.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (Gymnasium's own form)
    num_envs: int
    device: torch.device
    max_episode_steps: int
    control_hz: float
    """Policy steps per second of simulated time [Hz]."""
    action_unit_name: str = "rad"
    """What `action_unit` is measured in."""
    action_unit: Tensor
    """[A]: what an action of 1 means, in `action_unit_name`."""
    residual_unit: Tensor | None = None
    """[A]: what a residual of 1, at a scale of 1, adds to an action; None: 1. An action may span far more than a residual should."""
    deterministic: bool = True
    """Whether an episode is a function of its seed and its actions alone, bit for bit."""
    episode_seeds: EpisodeSeeds
    kinematics: KinematicChain | None = None
    """The arm, from the world to its tool, where the env has one."""
    hardware: HardwareUnits | None = None
    """What the robot's own software calls its joints and measures them in, where the env is of a real robot's."""
    arm: Arm | None = None
    """What its actions do with its arm, where it says so."""
    task_name: str = ""
    """The task under its simulator's own name, where an env is for more than one."""
    control_mode: str = ""
    """What actions command, in its simulator's own words, where that has several kinds of them."""
    joint_step: Tensor | None = None
    """[J]: the largest change of the joint targets that a controller should command each step [rad]."""

    @abstractmethod
    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        mask: Tensor | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Obs, dict[str, Any]]:
        """Start new episodes in the worlds of `mask` [B] bool (all without it).

        An integer seed means `seed + i` for world i, and further episodes go on counting from there; a sequence gives one
        seed a world. Without `seed` each world draws from `episode_seeds`, which counts from 0 in a new env: by design, the first
        reset gives the episodes 0, 1, … each time the program runs.

        `options={"episode": {name: [n, …]}}` starts the n episodes with these draws, as `episode` names them, in place of their seeds' own.
        """

    @abstractmethod
    def step(
        self, actions: Tensor, mask: Tensor | None = None
    ) -> tuple[Obs, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Execute `actions` [B, A] in the worlds of `mask` [B] (all without it); the others stand still: no time passes in them, and there
        is no reward."""

    @abstractmethod
    def state_dict(self) -> State:
        """All that makes the following steps the same: physics, counters, episode seeds."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave, in an env made with the same settings."""

    @property
    def active(self) -> Tensor:
        """[B] bool: the worlds that have an episode; those without one (seed -1) stand still."""
        return torch.ones(self.num_envs, dtype=torch.bool, device=self.device)

    @property
    def episode(self) -> Obs:
        """What was drawn for each world's present episode, by name, each [B, …]; nothing where an env does not tell."""
        return {}

    def world_states(self) -> Obs:
        """The simulator's state of each world, by name, each [B, S]; nothing where an env does not tell."""
        return {}

    def targets_to_actions(self, targets: Tensor, obs: Obs) -> Tensor:  # noqa: ARG002
        """The actions [b, K, A] in [-1, 1] that command the joint `targets` [b, K, J] in [rad] one after the other from `obs` on.

        `obs` has rows [b, …]. What an action's bound leaves of a way is caught up by the next ones. Raises `ConfigError` where actions
        command no joint targets.
        """
        raise ConfigError("this env's actions are no joint targets")

    def steps_to_actions(self, steps: Tensor, obs: Obs) -> Tensor:
        """The actions [b, A] that change the joint targets of `obs` (rows [b, …]) by `steps` [b, J] in [rad]."""
        return self.targets_to_actions((obs["joint_target"].double() + steps)[:, None], obs)[:, 0]

    def actions_to_targets(self, actions: Tensor, obs: Obs) -> Tensor:  # noqa: ARG002
        """The joint targets [b, K, J] in [rad] that the `actions` [b, K, A] command one after the other from `obs` on.

        Raises `ConfigError` where actions command no joint targets.
        """
        raise ConfigError("this env's actions are no joint targets")

    def _to_reset(
        self, seed: int | Sequence[int] | None, mask: Tensor | None, is_first: bool
    ) -> tuple[Tensor, Tensor]:
        """The worlds [n] int64 that `reset` is for, and the seeds [n] int64 of the episodes that begin in them."""
        if mask is None:
            mask = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        elif is_first:
            raise ConfigError("the first reset must be of all worlds: leave out mask")
        worlds = mask.nonzero().flatten()
        if seed is None:
            seeds = self.episode_seeds.draw(len(worlds))
        elif isinstance(seed, int | np.integer):
            seeds = seed + worlds.cpu()
            self.episode_seeds.use_counter(seed + self.num_envs)
        else:
            seeds = torch.as_tensor(seed, dtype=torch.int64)
            if seeds.shape != worlds.shape:
                raise ConfigError(f"{len(worlds)} world(s) are reset but {len(seeds)} seed(s) were given")
        return worlds, seeds.to(self.device)

    def observations(self) -> Obs:
        """The current observation of all worlds, without stepping."""
        raise NotImplementedError

    @property
    def model(self) -> Any:
        """The simulator's compiled model that all worlds share (MuJoCo: `mujoco.MjModel`)."""
        raise NotImplementedError

    def scenes(self) -> Tensor:
        """What drawing all worlds as they stand needs [B, S]."""
        raise NotImplementedError

    def render_scenes(
        self, scenes: Tensor, size: tuple[int, int], camera: str | None = None
    ) -> NDArray[np.uint8]:
        """Draw `scenes` [N, S] as images [N, H, W, 3] of `size` (H, W), from a camera of the scene or from where it is seen best."""
        raise NotImplementedError

    def set_training_progress(self, fraction: float, success_rate: float, episodes: int) -> dict[str, float]:  # noqa: ARG002
        """Tell a task's curriculum how far training is ([0, 1]), the success rate of its last 100 episodes and the number of all that
        ended; returns what to log of it."""
        return {}
