"""Progress of a training on a robot."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from residual_rl.types import Metrics, State
from residual_rl.utils.text import one_line

_SHOWN = 100
"""Number of episodes in the means of the log."""
_LARGEST = 1e300
"""Whole numbers in a file can be larger than any float."""


@dataclass
class Episode:
    """The running episode."""

    steps: int = 0
    episode_return: float = 0.0
    success: bool = False
    interventions: int = 0
    """Times at which the person took over."""
    intervened_steps: int = 0
    """Steps that the person commanded."""
    commanded: bool = False
    """Whether the person commanded the last step."""
    residual_magnitude: float = 0.0
    """Sum of the norms of the scaled residual over the steps."""


@dataclass
class RobotProgress:
    """What is known of the episodes so far; part of every checkpoint. It contains no wall times, so that
    equal runs in simulated time have equal checkpoints."""

    step: int = 0
    """Steps of the robot in finished episodes."""
    episodes: int = 0
    """Finished episodes."""
    interventions: int = 0
    """Times at which the person took over."""
    intervened_steps: int = 0
    """Steps that the person commanded."""
    best_rate: float = 0.0
    """Success rate of the window of episodes before `best_step`."""
    best_step: int = 0
    """Step of the policy in `best_model`; 0 for the base policy."""
    success: list[float] = field(default_factory=list)
    """Success (0 or 1) of the last episodes."""
    returns: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    """Success of the last episodes without interventions."""

    def add(self, episode: Episode, window: int) -> bool:
        """Count a finished episode. Returns whether the success rate of the last `window` episodes without
        interventions is above 0, and as high as ever or higher."""
        self.step += episode.steps
        self.episodes += 1
        self.interventions += episode.interventions
        self.intervened_steps += episode.intervened_steps
        self.success = [*self.success, float(episode.success)][-_SHOWN:]
        self.returns = [*self.returns, episode.episode_return][-_SHOWN:]
        self.lengths = [*self.lengths, float(episode.steps)][-_SHOWN:]
        if episode.intervened_steps:
            return False
        self.alone = [*self.alone, float(episode.success)][-window:]
        rate = sum(self.alone) / len(self.alone)
        if len(self.alone) < window or rate == 0.0 or rate < self.best_rate:
            return False
        self.best_rate, self.best_step = rate, self.step
        return True

    @property
    def success_rate(self) -> float | None:
        """Success rate of the last 100 episodes; None before the first."""
        return _mean(self.success) if self.success else None

    def metrics(self, episode: Episode, control_hz: float) -> Metrics:
        """The row of the log after `episode`."""
        return {
            "rollout/success_rate_100": _mean(self.success),
            "rollout/ep_rew_mean": _mean(self.returns),
            "rollout/ep_len_mean": _mean(self.lengths),
            "residual/magnitude": episode.residual_magnitude / episode.steps,
            "robot/episodes": self.episodes,
            "robot/success": float(episode.success),
            "robot/interventions": self.interventions,
            "robot/intervened_share": episode.intervened_steps / episode.steps,
            "robot/minutes": self.step / control_hz / 60.0,
        }

    def state_dict(self) -> State:
        """The fields as plain values."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def load_state_dict(self, state: State) -> None:
        """Restore `state_dict()`. Raises `ValueError` for values that no training has."""
        for item in fields(self):
            value = state[item.name]
            if not _can_be(value, getattr(self, item.name)):
                raise ValueError(f"progress.{item.name} cannot be {one_line(value, 80)}")
            setattr(self, item.name, value)


def _can_be(value: Any, present: Any) -> bool:
    """Whether `value` is of the kind of the field's value `present`, and in the range of all its values."""
    if isinstance(present, list):
        return isinstance(value, list) and all(_is_finite(number) for number in value)
    if isinstance(present, float):
        return _is_finite(value)
    return type(value) is int and 0 <= value < 1 << 62


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _LARGEST


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
