"""What everything shares: the observation type, the base policy, the learner, and the transition between them.

Shapes: T time, B envs, K chunk, A action, O observation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

Obs = dict[str, Tensor]
"""Named tensors with the batch in front: `state` [B, O], cameras [B, H, W, C] uint8, and named quantities."""

Metrics = dict[str, float]
"""Figures by tag; a whole number (int) counts something."""
State = dict[str, Any]
"""Nested dicts and lists of tensors, numbers, strings, booleans, None and segments: what a checkpoint can hold."""


class Segment:
    """A part of a state that never changes again, so that it is written to disk once, however many checkpoints hold it.

    Args:
        name: what tells it from all other segments of a run, as `segment_000003`.
        read: gives copies of its contents, of tensors and what else a state holds but segments.
    """

    def __init__(self, name: str, read: Callable[[], State]):
        self.name = name
        self._read: Callable[[], State] | None = read
        self._contents: State | None = None

    def contents(self) -> State:
        """What it holds."""
        if self._read is not None:
            return self._read()
        assert self._contents is not None
        return self._contents

    def keep(self) -> None:
        """Take a copy of its contents now: where they are read from they are about to give way."""
        if self._read is not None:
            self._contents, self._read = self._read(), None


@dataclass(frozen=True)
class ActionChunk:
    """What a base policy that knows how sure it is plans."""

    actions: Tensor
    """[b, K, A] in [-1, 1]."""
    uncertainty: Tensor | None = None
    """[b, K], 0 or more: how far an ensemble's, or its own samples', actions are apart (standard deviation, mean over A)."""


class BasePolicy(ABC):
    """A frozen policy that gives `base_action`, in chunks, for a batch of worlds.

    A subclass names what it needs in `inputs` and keeps its state (phase, history, generator) per world, in tensors
    whose first dimension is the world. It is used through `base_policies.executor.BasePolicyExecutor`, which checks `inputs`,
    keeps each world's chunk, and turns whatever it raises into an error that ends the run.
    """

    inputs: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    """Observation names it reads, with their shapes without the batch, e.g. `{"joint_target": (6,)}`."""
    chunk_size: int = 1
    """K: actions predicted at once."""
    num_action_steps: int = 1
    """How many of the K are executed before it is asked again."""
    num_obs_steps: int = 1
    """H: how many of the last observations it plans from. With more than one, `plan` gets each input as [b, H, …], the oldest first;
    the executor keeps them, and repeats an episode's first observation for those before it."""
    remote: bool = False
    """Whether it asks a server: a run on it that fails then ends with a checkpoint."""

    @abstractmethod
    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor | ActionChunk:
        """Plan for the `env_ids` [b] (int64 indices); `obs` holds their rows only. Returns [b, K, A] in [-1, 1]."""

    def reset(self, mask: Tensor) -> None:  # noqa: B027 (stateless policies need none)
        """Forget the state of the worlds where `mask` [B] (bool) is true."""

    def state_dict(self) -> State:
        """All that resuming needs."""
        return {}

    def load_state_dict(self, state: State) -> None:  # noqa: B027
        """Take back what `state_dict` gave."""


@dataclass(frozen=True)
class Transition:
    """One step of all worlds, as a learner sees it. `next_obs` is the true next observation: the final one where an
    episode ended, not the first of the following episode."""

    obs: Obs
    residual_action: Tensor
    """[B, A] in [-1, 1], as the composition used it."""
    reward: Tensor
    """[B]"""
    terminated: Tensor
    """[B] bool: the episode ended in a state without a future; its value is 0."""
    truncated: Tensor
    """[B] bool: the episode was cut off; its value is that of `next_obs`."""
    next_obs: Obs
    base_action: Tensor
    """[B, A]: the base action of `obs`."""
    action: Tensor
    """[B, A]: what the env executed."""
    effective_scale: float | Tensor | None = None
    """What the composition multiplied `residual_action` by: a number, [A] where it differs between actions, or each
    env's own, [B, 1] or [B, A], where it is adaptive. None where it is not known."""
    next_effective_scale: float | Tensor | None = None
    """The same for `next_obs`."""


@runtime_checkable
class Learner(Protocol):
    """Learns the residual from transitions. It never steps an env and writes no file."""

    num_steps: int
    """Steps per env that the runner collects between two `update` calls."""

    def act(self, obs: Obs, deterministic: bool = False) -> Tensor:
        """The residual action [B, A] in [-1, 1]. With `deterministic` it leaves the learner's state untouched."""
        ...

    def observe(self, transition: Transition) -> None:
        """Store one step."""
        ...

    def update(self) -> Metrics:
        """Learn from what was stored; returns figures to log, by tag."""
        ...

    def set_progress(self, fraction: float) -> None:
        """Tell the schedules how much of the training is done, in [0, 1]."""
        ...

    def state_dict(self) -> State:
        """Networks, optimiser, normalisers, schedules and generators."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        ...

    def policy_state_dict(self) -> State:
        """The part that acting needs: what an exported policy holds."""
        ...

    def load_policy_state_dict(self, state: State) -> None:
        """Take back what `policy_state_dict` gave."""
        ...


@runtime_checkable
class HasReplay(Protocol):
    """What a learner with a replay buffer has besides."""

    def replay_bytes(self, rows: int, kept_rows: int) -> tuple[int, int]:
        """Most bytes that its segments take on disk, and that a checkpoint takes for what is in none yet: after `rows` steps of each world,
        the oldest checkpoint being `kept_rows` behind."""
        ...


def check_finite(name: str, value: Tensor) -> None:
    """Raise `NonFiniteError` naming `name` and the first envs where `value` [B, …] is NaN or infinite."""
    from residual_rl.errors import NonFiniteError

    if torch.isfinite(value.sum()):  # one reduction; a sum is finite only if every term is (or it overflowed)
        return
    bad = (~torch.isfinite(value.reshape(value.shape[0], -1))).any(1).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(f"{name} is not finite in env(s) {bad[:8]}")
