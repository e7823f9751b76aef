"""A task as pure functions on batched tensors of named quantities, and the physics that fills them.

Quantities are a dict of tensors with the batch in front. `TaskEnv` adds to what the physics reads:

- `joint_target` [B, J], `action` [B, A]: what was commanded;
- `seed`, `step` [B] int64: the episode's seed, and how many steps it has had;
- `hold_steps` [B]: how many steps in a row the success condition held; `success` [B] bool: whether that is enough;
- whatever `randomize` drew for the episode, by its names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.errors import ConfigError
from residual_rl.robots.hardware_units import HardwareUnits
from residual_rl.types import Obs, State

Quantities = dict[str, Tensor]


class Task(ABC):
    """What is asked of the robot. It knows no simulator."""

    max_episode_steps: int
    success_hold_steps: int
    """Steps in a row that the success condition must hold; then the episode ends."""
    obs_cameras: tuple[str, ...] = ()
    """Cameras whose images are part of the observation."""
    best_camera: str = "scene"
    """Camera that shows best what happens."""
    image_size: tuple[int, int] = (128, 128)
    """Their height and width [px]."""
    action_unit: Tensor
    """[A]: what an action of 1 means, in [rad] or [m]."""
    residual_unit: Tensor | None = None
    """[A]: what a residual of 1, at a scale of 1, adds to an action; None: 1."""
    joint_step: Tensor | None = None
    """[J]: the largest change of the joint targets that a controller should command each step [rad]."""
    hardware: HardwareUnits | None = None
    """Names and units of the real robot's joints."""

    @abstractmethod
    def observation_space(self) -> spaces.Dict:
        """Names, shapes and bounds of what `observe` gives, without the batch."""

    @abstractmethod
    def randomize(self, seed: Tensor) -> Quantities:
        """Draw all that varies between episodes, from each episode's `seed` [n] int64 alone."""

    @abstractmethod
    def joint_target(self, action: Tensor, q: Quantities) -> Tensor:
        """The joint targets [B, J] that an `action` [B, A] in [-1, 1] commands."""

    def targets_to_actions(self, targets: Tensor, obs: Obs) -> Tensor:  # noqa: ARG002
        """The actions [b, K, A] in [-1, 1] that command the joint `targets` [b, K, J] one after the other; see `VecEnv`."""
        raise ConfigError("this task's actions are no joint targets")

    def actions_to_targets(self, actions: Tensor, obs: Obs) -> Tensor:  # noqa: ARG002
        """The joint targets [b, K, J] that `actions` [b, K, A] command one after the other; see `VecEnv`."""
        raise ConfigError("this task's actions are no joint targets")

    @abstractmethod
    def observe(self, q: Quantities) -> Obs:
        """The observation: `state` and the named quantities that base policies may ask for."""

    @abstractmethod
    def holds(self, q: Quantities) -> Tensor:
        """Whether the success condition holds at this instant [B] bool."""

    @abstractmethod
    def reward_terms(self, q: Quantities) -> dict[str, Tensor]:
        """The terms of the reward by name, each [B]; the reward is their sum."""

    @abstractmethod
    def metrics(self, q: Quantities) -> dict[str, Tensor]:
        """Figures that tell how the task goes, each [B]; the final ones are reported per episode."""

    def set_training_progress(self, fraction: float, success_rate: float, episodes: int) -> dict[str, float]:  # noqa: ARG002
        """Adapt a curriculum to the share of training done, the success rate of the last 100 episodes and the number of all that
        ended; returns what to log of it."""
        return {}

    def state_dict(self) -> State:
        """The curriculum's state."""
        return {}

    def load_state_dict(self, state: State) -> None:  # noqa: B027
        """Take back what `state_dict` gave."""


class Physics(Protocol):
    """Steps B worlds between two policy steps and reads named quantities off them."""

    num_envs: int
    device: torch.device
    control_hz: float
    deterministic: bool

    @property
    def model(self) -> Any:
        """The compiled model that all worlds share, in the backend's own type (MuJoCo: `mujoco.MjModel`)."""
        ...

    def reset(self, worlds: Tensor, episode: Quantities) -> None:
        """Put the `worlds` [n] int64 at the start of the episodes drawn by `Task.randomize` (rows [n, …])."""
        ...

    def step(self, joint_target: Tensor, worlds: Tensor | None = None) -> None:
        """Advance the `worlds` [n] int64 (None: all) by one policy step towards `joint_target` [B, J].

        Raises `NonFiniteError` where a world diverged.
        """
        ...

    def state_before(self) -> State:
        """What `state_dict` gave before the last `step`, for a post-mortem."""
        ...

    def read(self) -> Quantities:
        """The named quantities of all worlds; the tensors belong to the caller."""
        ...

    def scenes(self) -> Tensor:
        """What drawing all worlds needs [B, S]."""
        ...

    def render(
        self, scenes: Tensor, cameras: Sequence[str], size: tuple[int, int], smooth: bool = False
    ) -> dict[str, NDArray[np.uint8]]:
        """Images [N, H, W, 3] of `scenes` [N, S] by camera; `smooth` edges cost more."""
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...

    def world_states(self) -> Quantities:
        """The simulator's state of each world, by name, each [B, S]."""
        ...

    def close(self) -> None: ...
