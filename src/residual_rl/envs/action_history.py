"""The actions of running episodes, from which envs are restored by replay."""

from __future__ import annotations

import itertools
import logging

import torch
from torch import Tensor

from residual_rl.types import Obs, State

_log = logging.getLogger(__name__)


class ActionHistory:
    """The actions of B envs since the start of the oldest running episode.

    Args:
        num_envs: B.
        action_dim: A.
    """

    def __init__(self, num_envs: int, action_dim: int):
        self._empty = (torch.zeros(0, num_envs, action_dim), torch.zeros(0, num_envs, dtype=torch.bool))
        self._steps: list[tuple[Tensor, Tensor]] = []

    def append(self, actions: Tensor, executed: Tensor) -> None:
        """Store a step: its `actions` [B, A], and the envs [B] bool that `executed` them."""
        self._steps.append((actions, executed))

    def played(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The actions [T, B, A] of the running episodes, and the mask [T, B] of those that were executed.

        `lengths` [B] are the steps of the running episodes so far.
        """
        if not self._steps:
            return self._empty
        actions, executed = (torch.stack(parts) for parts in zip(*self._steps, strict=True))
        # the last `length` executed actions of an env belong to its running episode
        steps_ago = executed.flip(0).cumsum(0).flip(0)
        return actions, executed & (steps_ago <= lengths)

    def dump(self, lengths: Tensor) -> State:
        """What `played` returns, by name, for a `NonFiniteError`."""
        actions, executed = self.played(lengths)
        return {"actions_before": actions, "executed_before": executed}

    def forget_ended(self, lengths: Tensor) -> None:
        """Drop the steps that no running episode needs; with masked steps, they may be in the middle."""
        if self._steps:
            is_needed = self.played(lengths)[1].any(1).tolist()
            self._steps = list(itertools.compress(self._steps, is_needed))

    def load(self, actions: Tensor, executed: Tensor) -> None:
        """Replace all steps by those that `played` returned."""
        self._steps = list(zip(actions, executed, strict=True))


def warn_unless_equal(obs: Obs, saved: Obs, task_name: str) -> None:
    """Log a warning if replayed episodes have other observations `obs` than those that were `saved`."""
    if any(not torch.equal(value, saved[name]) for name, value in obs.items()):
        _log.warning(
            "the running episodes of %s could not be restored exactly: the state was saved on another machine"
            " or with other versions of the env's packages",
            task_name,
        )
