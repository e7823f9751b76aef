"""Types shared by all packages: observations, base policies, learners and transitions.

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
"""Metrics by tag. An `int` is a count: a log row shows its latest value instead of a mean."""
State = dict[str, Any]
"""The contents of a checkpoint: nested dicts and lists of tensors, numbers, strings, booleans, None and
segments."""


class Segment:
    """An immutable part of a state. It is written to disk once, however many checkpoints refer to it.

    Args:
        name: unique among the segments of a run, for example `segment_000003`.
        read: returns a copy of the contents: any state without segments.
    """

    def __init__(self, name: str, read: Callable[[], State]):
        self.name = name
        self._read: Callable[[], State] | None = read
        self._contents: State | None = None

    def contents(self) -> State:
        """A copy of the contents."""
        if self._read is not None:
            return self._read()
        assert self._contents is not None
        return self._contents

    def keep(self) -> None:
        """Copy the contents now, before their source is overwritten."""
        if self._read is not None:
            self._contents = self._read()
            self._read = None


@dataclass(frozen=True)
class ActionChunk:
    """The prediction of a base policy that estimates its own uncertainty."""

    actions: Tensor
    """[b, K, A] in [-1, 1]."""
    uncertainty: Tensor | None = None
    """[b, K], at least 0: the standard deviation between the actions of an ensemble, or between several
    samples, averaged over A."""


class BasePolicy(ABC):
    """A frozen policy that predicts `base_action`, in chunks, for a batch of envs.

    A subclass names the observations that it needs in `inputs`, and keeps any state (phase, history,
    generator) in tensors with the env as their first dimension. It is queried through
    `base_policies.executor.BasePolicyExecutor`, which checks `inputs`, stores each env's chunk, and turns
    exceptions into an error that ends the run.
    """

    inputs: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    """Observations that the policy reads, with their shapes without the batch, e.g. `{"joint_target":
    (6,)}`."""
    chunk_size: int = 1
    """K: number of actions predicted at once."""
    num_action_steps: int = 1
    """Number of actions of a chunk that are executed before the next query."""
    num_obs_steps: int = 1
    """H: number of most recent observations that the policy reads. With H > 1, `predict_action_chunk`
    receives each input as [b, H, …], oldest first. The executor keeps this history and pads it with the
    episode's first observation."""
    remote: bool = False
    """Whether the policy queries a server. If such a query fails, the run saves a checkpoint before it
    ends."""

    @abstractmethod
    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor | ActionChunk:
        """Predict actions [b, K, A] in [-1, 1] for the envs `env_ids` [b] (int64); `obs` has only their
        rows."""

    def reset(self, mask: Tensor) -> None:  # noqa: B027 (stateless policies need none)
        """Reset the state of the envs where `mask` [B] (bool) is true."""

    def state_dict(self) -> State:
        """The state needed to resume."""
        return {}

    def load_state_dict(self, state: State) -> None:  # noqa: B027
        """Restore a state returned by `state_dict`."""


@dataclass(frozen=True)
class Transition:
    """One step of all envs, as passed to a learner.

    `next_obs` is the true next observation: where an episode ended, its final observation, not the first of
    the next episode.
    """

    obs: Obs
    residual_action: Tensor
    """[B, A] in [-1, 1], as used by the composition."""
    reward: Tensor
    """[B]"""
    terminated: Tensor
    """[B] bool: the episode ended in a terminal state, whose value is 0."""
    truncated: Tensor
    """[B] bool: the episode was cut off; bootstrap from the value of `next_obs`."""
    next_obs: Obs
    base_action: Tensor
    """[B, A]: the base action for `obs`."""
    action: Tensor
    """[B, A]: the action that the env executed. Of a whole chunk, the steps after the end of an episode are
    as they would have been executed."""
    effective_scale: float | Tensor | None = None
    """Factor by which the composition multiplied `residual_action`: a number; [A] if it differs between
    action dimensions; [B, 1] or [B, A] if it is adaptive and differs between envs; None if it is not defined
    for the whole decision."""
    next_effective_scale: float | Tensor | None = None
    """The same for `next_obs`."""
    success: Tensor | None = None
    """[B] bool: the episode ended with this step, and the task was solved at any of its steps. None where the
    outcome is unknown."""
    intervention: Tensor | None = None
    """[B] bool: a person commanded this step, and `residual_action` is the residual closest to that action.
    None where nobody can."""


@runtime_checkable
class Learner(Protocol):
    """Learns the residual from transitions. A learner never steps an env and writes no files."""

    num_steps: int
    """Steps per env that the runner collects between two updates."""

    def act(self, obs: Obs, deterministic: bool = False) -> Tensor:
        """The residual action [B, A] in [-1, 1]. If `deterministic`, the learner's state does not change."""
        ...

    def observe(self, transition: Transition) -> None:
        """Store one step of all envs."""
        ...

    def update(self) -> Metrics:
        """Learn from the stored steps and return the metrics to log."""
        ...

    def set_progress(self, fraction: float) -> None:
        """Set the schedules to the finished fraction of training, in [0, 1]."""
        ...

    def state_dict(self) -> State:
        """Networks, optimisers, normalisers, schedules and generators."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Restore a state returned by `state_dict`."""
        ...

    def policy_state_dict(self) -> State:
        """The part needed for acting, which an exported policy contains."""
        ...

    def load_policy_state_dict(self, state: State) -> None:
        """Restore a state returned by `policy_state_dict`."""
        ...


@runtime_checkable
class HasReplay(Protocol):
    """A learner with a replay buffer."""

    def replay_bytes(self, rows: int, kept_rows: int) -> tuple[int, int]:
        """Upper bounds of the disk space used by the replay buffer [bytes].

        Args:
            rows: steps per env of the whole training.
            kept_rows: steps per env between the oldest kept checkpoint and the newest one.

        Returns:
            The size of all segments, and the size of the rows that a checkpoint stores outside of segments.
        """
        ...


@runtime_checkable
class LearnsAsynchronously(Protocol):
    """A learner that can learn beside a robot, in small pieces, and from the interventions of a person."""

    @property
    def updates_due(self) -> int:
        """Number of gradient steps that `update` would take."""
        ...

    def update(self, max_steps: int | None = None) -> Metrics:
        """Take the gradient steps that are due, at most `max_steps` of them."""
        ...

    def collect_interventions(self) -> None:
        """From now on, learn from the steps that a person commanded as from demonstrations."""
        ...


@runtime_checkable
class ChoosesStartStates(Protocol):
    """A learner that wants some of the training episodes to start in states of earlier ones."""

    restart_share: float
    """Share of the episodes that start in such a state."""
    start_states: Tensor
    """[B] bool: the envs whose state at the last `act` is to be kept as such a state."""


def check_finite(name: str, value: Tensor) -> None:
    """Raise `NonFiniteError` with `name` and the first env ids where `value` [B, …] is NaN or infinite."""
    from residual_rl.errors import NonFiniteError

    if torch.isfinite(value.sum()):  # one reduction; a sum is finite only if every term is (or it overflowed)
        return
    bad = (~torch.isfinite(value.reshape(value.shape[0], -1))).any(1).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(f"{name} is not finite in env(s) {bad[:8]}")
