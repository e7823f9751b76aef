"""Observations of other libraries' envs with the base action."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.envs.gymnasium.nested import flat_space, leaves
from residual_rl.errors import ConfigError


class BaseActionObs:
    """Observations with the base action, as one float32 vector or as a `Dict`.

    Args:
        space: the observation space of one env.
        action_space: the space of its base action.
        flatten: whether they are a vector; None: only if `space` is that of vectors.

    Raises:
        ConfigError: `space` cannot be flattened, or has a `base_action` already.
    """

    def __init__(self, space: spaces.Space[Any], action_space: spaces.Box, flatten: bool | None):
        self._space = space
        is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1
        self._flatten = is_vector if flatten is None else flatten
        self.space: spaces.Space[Any]
        """The space of one env."""
        if self._flatten:
            parts = [flat_space(space), flat_space(action_space)]
            low, high = (np.concatenate([getattr(part, end) for part in parts]) for end in ("low", "high"))
            self.space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
            return
        entries = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
        if "base_action" in entries:
            raise ConfigError("the env has an observation base_action already: rename it, or flatten=True")
        self.space = spaces.Dict({**entries, "base_action": action_space})

    def join(self, obs: Any, base_action: Any, lead: tuple[int, ...]) -> Any:
        """`obs` with `base_action`, both with the leading dimensions `lead`: (B,), or () for one env."""
        if not self._flatten:
            entries = obs if isinstance(self._space, spaces.Dict) else {"observation": obs}
            return {**entries, "base_action": base_action}
        parts = [*leaves(self._space, obs), base_action]
        if isinstance(base_action, Tensor):
            return torch.cat([part.reshape(*lead, -1).float() for part in parts], -1)
        return np.concatenate([np.asarray(part, np.float32).reshape(*lead, -1) for part in parts], -1)
