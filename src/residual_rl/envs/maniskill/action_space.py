"""Actions in [-1, 1] for ManiSkill's controllers, some of which take unscaled positions or velocities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.errors import ConfigError


class ActionRange:
    """The action ranges of all robots of a ManiSkill env, concatenated.

    Args:
        env: the unwrapped env.

    Raises:
        ConfigError: the actions of a control mode are unbounded.
    """

    def __init__(self, env: Any):
        spaces = dict(getattr(env.single_action_space, "spaces", {"": env.single_action_space}))
        agents = dict(zip(spaces, getattr(env.agent, "agents", [env.agent]), strict=True))
        self._parts: list[tuple[str, int, Tensor, Tensor]] = []
        """For each robot: its name, the size of its action, and the centre and half width of the range."""
        # the affine map from [-1, 1] to each robot's range
        for name, space in spaces.items():
            middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
            if not np.isfinite(half).all() or not (half > 0.0).all():
                bounded = [mode for mode in agents[name].supported_control_modes if "delta" in mode]
                mode, robot = agents[name].control_mode, agents[name].uid
                raise ConfigError(
                    f"the actions of control mode {mode!r} of robot {robot!r} are unbounded and cannot be"
                    " normalised; choose another --control-mode, such as"
                    f" {' or '.join(bounded[:3]) or 'one with delta actions'}"
                )
            self._parts.append(
                (
                    name,
                    len(half),
                    *(torch.from_numpy(np.float32(end)).to(env.device) for end in (middle, half)),
                )
            )
        self._is_normalised = all(
            bool((middle == 0).all() and (half == 1).all()) for _, _, middle, half in self._parts
        )
        self.size = np.concatenate([_half_ranges(agent.controller) for agent in agents.values()])
        """[A]: the physical value of an action of 1, in the units of the controllers."""

    def to_maniskill(self, actions: Tensor) -> Tensor | dict[str, Tensor]:
        """Convert `actions` [B, A] in [-1, 1] to the format of ManiSkill's `step`."""
        if len(self._parts) == 1:
            _, _, middle, half = self._parts[0]
            return actions if self._is_normalised else middle + actions * half
        # several robots: a dict of the columns of each
        columns = actions.split([size for _, size, _, _ in self._parts], 1)
        return {
            name: middle + part * half
            for (name, _, middle, half), part in zip(self._parts, columns, strict=True)
        }

    def from_maniskill(self, actions: Tensor) -> Tensor:
        """The inverse of `to_maniskill` for `actions` [B, A] of a single robot.

        Raises `ConfigError` if the env has several robots.
        """
        if len(self._parts) != 1:
            raise ConfigError("actions of envs with several robots cannot be converted")
        _, _, middle, half = self._parts[0]
        return actions if self._is_normalised else (actions - middle) / half


def _half_ranges(controller: Any) -> NDArray[np.float32]:
    """Half width of each action's range before ManiSkill's normalisation."""
    parts = getattr(controller, "controllers", None)
    if parts is not None:
        return np.concatenate([_half_ranges(part) for part in parts.values()])
    space = (
        controller._original_single_action_space
        if controller._normalize_action
        else controller.single_action_space
    )
    return np.asarray((space.high - space.low) / 2, np.float32)
