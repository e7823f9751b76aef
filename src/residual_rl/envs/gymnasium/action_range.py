"""The actions of an env in its own units and normalised to [-1, 1]. Loaded by path in worker processes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class ActionRange:
    """A bounded Box of actions of any shape, bounds and dtype.

    Args:
        space: the env's action space.
        name: name of the env, for messages.

    Raises:
        ValueError: it is not a bounded Box.
    """

    def __init__(self, space: Any, name: str):
        # The class may be that of another installation, so compare by name.
        if type(space).__name__ != "Box":
            raise ValueError(
                f"{name} has actions {space}; a residual needs a bounded Box of continuous actions"
            )
        low, high = (np.asarray(bound, np.float64).ravel() for bound in (space.low, space.high))
        unbounded = np.flatnonzero(~np.isfinite(low) | ~np.isfinite(high) | (high - low > _WIDEST))
        if len(unbounded):
            raise ValueError(
                f"{name} has unbounded actions (dimensions {unbounded.tolist()}); create it with bounds, such"
                " as those of gymnasium.wrappers.RescaleAction, in the `make` of an adapter"
            )
        empty = np.flatnonzero(high <= low)
        if not len(low) or len(empty):
            raise ValueError(f"{name} has actions without a range (dimensions {empty.tolist()})")
        self._shape, self._dtype = space.shape, space.dtype
        self._is_integer = np.issubdtype(space.dtype, np.integer)
        self.low, self.high = low, high
        """[A] float64: the bounds."""
        self.centre = (low + high) / 2.0
        """[A] float64: the action that 0 stands for."""
        self.unit = (high - low) / 2.0
        """[A] float64: the change that a normalised change of 1 stands for."""

    def raw(self, actions: NDArray[np.float32]) -> NDArray[Any]:
        """The env's actions for normalised ones [A] or [n, A]: equal where the bounds are -1 and 1."""
        raw = self.centre + self.unit * actions
        raw = np.minimum(np.maximum(raw, self.low), self.high)  # in case of rounding; faster than clip
        if self._is_integer:
            raw = np.rint(raw)
        return raw.astype(self._dtype).reshape(*actions.shape[:-1], *self._shape)

    def normalised(self, raw: Any) -> NDArray[np.float32]:
        """The normalised action [A] in [-1, 1] for one of the env."""
        flat = (np.asarray(raw, np.float64).ravel() - self.centre) / self.unit
        return np.clip(flat, -1.0, 1.0).astype(np.float32)


_WIDEST = 1e30
"""Width of a range from which on it has no bounds; some envs write float32's largest number for infinity."""
