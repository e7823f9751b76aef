"""Batches of actions in an env's own units and normalised to [-1, 1], in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.envs.gymnasium.action_range import ActionRange
from residual_rl.errors import ConfigError


class NormalisedActions:
    """The actions of an env, normalised: its bounds become -1 and 1.

    They are converted in float64, so that a float32 action survives the conversion and its inverse bit for
    bit.

    Args:
        space: the action space of one env.
        device: device of the actions.

    Raises:
        ConfigError: `space` is no bounded `Box`.
    """

    def __init__(self, space: spaces.Space[Any], device: torch.device):
        try:
            limits = ActionRange(space, "the env")
        except ValueError as error:
            raise ConfigError(str(error)) from error
        assert isinstance(space, spaces.Box)
        self.space = spaces.Box(-1.0, 1.0, space.shape, np.float32)
        """The space of the normalised actions of one env."""
        self._low, self._high, self._centre, self.unit = (
            torch.from_numpy(value).to(device)
            for value in (limits.low, limits.high, limits.centre, limits.unit)
        )
        """[A]: the change in the env's units that a change of 1 stands for."""
        self._dtype = torch.from_numpy(np.zeros(1, space.dtype)).dtype

    def normalise(self, actions: Tensor) -> Tensor:
        """`actions` [b, A] in the env's units as normalised actions."""
        return ((actions - self._centre) / self.unit).clamp(-1.0, 1.0)

    def in_units(self, actions: Tensor) -> Tensor:
        """Normalised `actions` [b, A] in the env's units."""
        found = (self._centre + self.unit * actions).clamp(self._low, self._high)
        return (found if self._dtype.is_floating_point else found.round()).to(self._dtype)
