"""Disturbances of a base policy's actions, as step hooks: noise, a constant offset, and a delay.

Each is a function of the episode's seed and the step alone, so that an episode does not depend on the other
envs of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from residual_rl.envs.action_noise import ActionNoise
from residual_rl.envs.vec_env import VecEnv
from residual_rl.types import Obs
from residual_rl.utils.seeding import normal

Kind = Literal["correlated", "white", "offset", "delay"]
"""Noise that is correlated in time, white noise, an offset that is constant in an episode, and actions that
are executed one step late."""
CORRELATION = 0.9
"""Correlation of correlated noise from one step to the next."""
_OFFSET_STREAM = 1 << 33
"""Random stream of the offset; those of the noise and of a task's draws have smaller numbers."""


class Disturbance(Protocol):
    """A `residual_rl.residual_env.StepHook` that is restarted with the episodes."""

    def restart(self, seeds: Sequence[int]) -> None:
        """Prepare for the episodes of `seeds`, which begin in the first envs."""
        ...

    def before_step(self, action: Tensor, stepping: Tensor) -> Tensor:
        """The action [B, A] to execute in place of `action` in the envs of `stepping` [B] bool."""
        ...

    def after_step(self, obs: Obs) -> None:
        """Receive the observation after the step."""
        ...


def make_disturbance(kind: Kind, size: float, env: VecEnv) -> Disturbance:
    """The disturbance `kind` for `env`.

    Args:
        kind: the kind.
        size: standard deviation of the noise, or root mean square of the offset over the action's
            dimensions, in units of the env's `residual_unit`. A delay has no size.
        env: the env.
    """
    if kind == "delay":
        return Delay()
    if kind == "offset":
        return Offset(env, size)
    return Noise(env, size, CORRELATION if kind == "correlated" else 0.0)


class Noise(ActionNoise):
    """Autoregressive noise; see `ActionNoise`."""

    def restart(self, seeds: Sequence[int]) -> None:  # type: ignore[override]
        super().restart(np.arange(len(seeds)), seeds)


class Offset:
    """Executes `clip(action + offset)`, with an offset in a random direction for each episode.

    Args:
        env: the env.
        size: root mean square of the offset over the action's dimensions, in units of `residual_unit`.
    """

    def __init__(self, env: VecEnv, size: float):
        unit = env.residual_unit
        self._size = size * (torch.ones_like(env.action_unit) if unit is None else unit).double()
        self._offset = torch.zeros(env.num_envs, len(self._size), dtype=torch.float64, device=env.device)

    def restart(self, seeds: Sequence[int]) -> None:
        """Draw the offsets of the episodes of `seeds`, which begin in the first envs."""
        n, action_dim = len(seeds), self._offset.shape[1]
        seed = torch.tensor(list(seeds), dtype=torch.int64, device=self._offset.device)
        direction = normal(seed, _OFFSET_STREAM, action_dim)
        direction = direction / direction.norm(dim=1, keepdim=True)
        self._offset[:n] = self._size * math.sqrt(action_dim) * direction

    def before_step(self, action: Tensor, stepping: Tensor) -> Tensor:  # noqa: ARG002
        """Add the offset to `action` [B, A]."""
        return (action + self._offset).float().clamp(-1.0, 1.0)

    def after_step(self, obs: Obs) -> None:
        """Nothing to do."""


class Delay:
    """Executes each action one step late; the first one is executed twice."""

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def restart(self, seeds: Sequence[int]) -> None:  # noqa: ARG002
        """Forget the last action."""
        self._last = None

    def before_step(self, action: Tensor, stepping: Tensor) -> Tensor:  # noqa: ARG002
        """The action [B, A] of the step before."""
        executed = action if self._last is None else self._last
        self._last = action
        return executed

    def after_step(self, obs: Obs) -> None:
        """Nothing to do."""
