"""Actions in [-1, 1] for ManiSkill's controllers, some of which take joint positions or velocities as they
are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.errors import ConfigError


class ActionRange:
    """The actions of all robots of a ManiSkill env, one after the other.

    Raises `ConfigError` where a control mode's actions have no bounds.

    Args:
        env: unwrapped.
    """

    def __init__(self, env: Any):
        spaces = dict(getattr(env.single_action_space, "spaces", {"": env.single_action_space}))
        agents = dict(zip(spaces, getattr(env.agent, "agents", [env.agent]), strict=True))
        self._parts: list[tuple[str, int, Tensor, Tensor]] = []
        """For each robot its name, its number of actions, and the middle and the half of the range of
        each."""
        # the affine map from [-1, 1] to each robot's range
        for name, space in spaces.items():
            middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
            if not np.isfinite(half).all() or not (half > 0.0).all():
                bounded = [mode for mode in agents[name].supported_control_modes if "delta" in mode]
                mode, robot = agents[name].control_mode, agents[name].uid
                raise ConfigError(
                    f"control mode {mode!r} of robot {robot!r} has actions without bounds, so that -1 and 1"
                    " would mean nothing; choose another, such as"
                    f" {' or '.join(bounded[:3]) or 'one of changes (delta)'}"
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
        """[A]: what an action of 1 means, in the controllers' own units."""

    def to_maniskill(self, actions: Tensor) -> Tensor | dict[str, Tensor]:
        """What the env takes for `actions` [B, A] in [-1, 1]."""
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
        """[B, A]: what `to_maniskill` turns into `actions` [B, A], for one robot. Raises `ConfigError` where
        there are several."""
        if len(self._parts) != 1:
            raise ConfigError("actions of several robots cannot be converted")
        _, _, middle, half = self._parts[0]
        return actions if self._is_normalised else (actions - middle) / half


def _half_ranges(controller: Any) -> NDArray[np.float32]:
    """Half of what each action of a controller spans, before ManiSkill normalises it."""
    parts = getattr(controller, "controllers", None)
    if parts is not None:
        return np.concatenate([_half_ranges(part) for part in parts.values()])
    space = (
        controller._original_single_action_space
        if controller._normalize_action
        else controller.single_action_space
    )
    return np.asarray((space.high - space.low) / 2, np.float32)
