"""A task as pure functions on batched tensors of named quantities, and the physics that provides them.

Quantities are a dict of tensors with the batch in front. `TaskEnv` adds these to the ones that the physics
reads:

- `joint_target` [B, J] and `action` [B, A]: the last command;
- `seed` and `step` [B] int64: the episode's seed, and the number of its steps so far;
- `hold_steps` [B]: consecutive steps for which the success condition has held;
- `success` [B] bool: whether `hold_steps` has reached `success_hold_steps`;
- the quantities that `randomize` drew for the episode.
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
    """Observation, reward, success and randomisation of a task, independent of the simulator."""

    max_episode_steps: int
    """Steps after which an episode is truncated."""
    success_hold_steps: int
    """Consecutive steps for which the success condition must hold; then the episode terminates."""
    obs_cameras: tuple[str, ...] = ()
    """Cameras whose images are part of the observation."""
    best_camera: str = "scene"
    """Camera with the best overview, for videos."""
    image_size: tuple[int, int] = (128, 128)
    """Height and width of the observed images [px]."""
    action_unit: Tensor
    """[A]: the physical value of an action of 1, in [rad] or [m]."""
    residual_unit: Tensor | None = None
    """[A]: the action change of a residual of 1 at a scale of 1; None means 1."""
    joint_step: Tensor | None = None
    """[J]: the largest change of the joint targets that a controller should command in one step [rad]."""
    hardware: HardwareUnits | None = None
    """Names and units of the real robot's joints."""
    pose_object: str | None = None
    """NAME of the object that is not part of the robot, of the quantities `NAME_position` [B, 3] and
    `NAME_quaternion` [B, 4]; a real robot needs a pose source for it. None: there is none."""
    action_delay: int = 0
    """Policy steps after which an action changes the joint targets."""
    environment_state: tuple[str, ...] = ()
    """Observations that together are LeRobot's `observation.environment_state`, in this order: all vectors
    that a policy may read."""

    @abstractmethod
    def observation_space(self) -> spaces.Dict:
        """Names, shapes and bounds of the result of `observe`, without the batch."""

    @abstractmethod
    def randomize(self, seed: Tensor) -> Quantities:
        """Draw the quantities that vary between episodes, as a function of their `seed` [n] int64."""

    @abstractmethod
    def joint_target(self, action: Tensor, q: Quantities) -> Tensor:
        """The joint targets [B, J] that an `action` [B, A] in [-1, 1] commands."""

    def targets_to_actions(self, targets: Tensor, obs: Obs) -> Tensor:  # noqa: ARG002
        """The actions [b, K, A] that command the joint `targets` [b, K, J] in sequence; see `VecEnv`."""
        raise ConfigError("this task's actions are not joint targets")

    def actions_to_targets(self, actions: Tensor, obs: Obs) -> Tensor:  # noqa: ARG002
        """The joint targets [b, K, J] that `actions` [b, K, A] command in sequence; see `VecEnv`."""
        raise ConfigError("this task's actions are not joint targets")

    @abstractmethod
    def observe(self, q: Quantities) -> Obs:
        """The observation: `state` and the named quantities that base policies may request."""

    def with_joined(self, named: Obs) -> Obs:
        """The `named` observations, with those that are joined from them."""
        return named

    @abstractmethod
    def holds(self, q: Quantities) -> Tensor:
        """[B] bool: whether the success condition holds at this instant."""

    @abstractmethod
    def reward_terms(self, q: Quantities) -> dict[str, Tensor]:
        """The reward terms by name, [B] each; the reward is their sum."""

    @abstractmethod
    def metrics(self, q: Quantities) -> dict[str, Tensor]:
        """Task metrics by name, [B] each; their final values are reported for each episode."""

    def set_training_progress(
        self,
        fraction: float,  # noqa: ARG002
        success_rate: float,  # noqa: ARG002
        episodes: int,  # noqa: ARG002
    ) -> dict[str, float]:
        """Update the curriculum; returns metrics to log.

        Args:
            fraction: share of the training done, in [0, 1].
            success_rate: success rate of the last 100 episodes.
            episodes: number of episodes that have ended.
        """
        return {}

    def state_dict(self) -> State:
        """The curriculum's state."""
        return {}

    def load_state_dict(self, state: State) -> None:  # noqa: B027
        """Restore `state_dict()`."""


class Physics(Protocol):
    """Steps B envs by one policy step at a time and reads named quantities from them."""

    num_envs: int
    """B."""
    device: torch.device
    """Device of all tensors."""
    control_hz: float
    """Policy steps per second of simulated time [Hz]."""
    deterministic: bool
    """Whether an episode is a function of its seed and its actions alone, bit for bit."""

    @property
    def model(self) -> Any:
        """The compiled model shared by all envs, in the backend's own type (MuJoCo: `mujoco.MjModel`)."""
        ...

    def reset(self, env_ids: Tensor, episode: Quantities) -> None:
        """Start episodes in the envs `env_ids` [n] int64 with the draws of `Task.randomize`, [n, …] each."""
        ...

    def step(self, joint_target: Tensor, env_ids: Tensor | None = None) -> Tensor | None:
        """Advance the envs `env_ids` [n] int64 (None: all) by one policy step towards `joint_target` [B, J].

        Returns the targets [B, J] that were commanded, where limits may have changed them; None: all as
        given. Raises `NonFiniteError` if an env diverges.
        """
        ...

    def state_before(self) -> State:
        """The `state_dict()` from before the last `step`, for a post-mortem."""
        ...

    def read(self) -> Quantities:
        """The named quantities of all envs, [B, …] each. The tensors belong to the caller."""
        ...

    def scenes(self) -> Tensor:
        """[B, S]: the state needed to render each env."""
        ...

    def render(
        self, scenes: Tensor, cameras: Sequence[str], size: tuple[int, int], smooth: bool = False
    ) -> dict[str, NDArray[np.uint8]]:
        """Images [N, H, W, 3] uint8 of `scenes` [N, S] by camera; `smooth` turns on slower anti-aliasing."""
        ...

    def state_dict(self) -> State:
        """The state of all envs, for resuming."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Restore `state_dict()`."""
        ...

    def env_states(self) -> Quantities:
        """The simulator's state of each env by name, [B, S] each. The tensors belong to the caller."""
        ...

    def set_env_states(self, env_ids: Tensor, states: Quantities) -> None:
        """Set the envs `env_ids` [n] to `states` [n, S] from `env_states`, within an episode with the same
        draws."""
        ...

    def close(self) -> None:
        """Free renderers and other resources."""
        ...
