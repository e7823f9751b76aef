"""The check of what an env returns in each step."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from residual_rl.errors import NonFiniteError
from residual_rl.types import Obs, check_finite

VERY_LARGE = 1e6
"""Absolute value from which on an observation or reward is reported."""

_log = logging.getLogger(__name__)


class StepCheck:
    """Raises an error for values that are not finite, and warns once about each name with very large ones."""

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def __call__(self, values: Mapping[str, Tensor], obs: Obs) -> None:
        """Check all floating-point `values` [B, …] at once, since each check synchronises with a GPU.

        Args:
            values: what to check, by the name in messages.
            obs: the preceding observation, for the dump of an error.

        Raises:
            NonFiniteError: names the value and the envs.
        """
        floats = {name: value for name, value in values.items() if value.is_floating_point()}
        if not floats:  # an env that observes only images
            return
        largest = torch.cat([value.flatten(1) for value in floats.values()], 1).abs().amax()
        if largest < VERY_LARGE:  # false for NaN
            return
        for name, value in floats.items():
            try:
                check_finite(name, value)
            except NonFiniteError as error:
                dump = {f"obs/{key}": tensor for key, tensor in obs.items()}
                raise NonFiniteError(str(error), dump={**dump, **values}) from None
            if name not in self._reported:
                self._report(name, value.flatten(1))

    def _report(self, name: str, value: Tensor) -> None:
        """Warn if an entry of `value` [B, n] is very large."""
        largest = value.abs().amax()
        if largest < VERY_LARGE:
            return
        self._reported.add(name)
        env_id, element = divmod(int(value.abs().argmax()), value.shape[1])
        _log.warning(
            "%s is %.3g in env %d, element %d: values this large spoil the running statistics of"
            " observations and rewards for the rest of the training; clip or rescale them in the env",
            name,
            value[env_id, element].item(),
            env_id,
            element,
        )
