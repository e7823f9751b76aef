"""Settings of a training that follow from the probe of its base policy."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from residual_rl.evaluation.failure_prediction import MIN_EPISODES
from residual_rl.evaluation.probe import SIZES, Condition, Probe
from residual_rl.utils.statistics import Summary

TOLERATED_LOSS = 0.10
"""Loss of success up to which a disturbance counts as tolerated."""
PREDICTABLE_AREA = 0.6
"""Area under the ROC curve from which a failure gate can tell where the base policy will fail."""
RARE_SUCCESS = 0.1
"""Success rate below which the base policy needs no protection."""
FULL_SCALE = 1.0
FAILURES_NEEDED = 10
"""Failures that are expected in the episodes by the base policy alone. Where successes are rare, the gate is
open anyway."""
WARMUP_EPISODES = (50, 200)
"""Least and largest number of those episodes."""
LARGEST_REWARD = 2.0
"""The largest |reward| of a step after scaling."""
TRAINING_LENGTH = 2.5
"""Length of training episodes as a multiple of that of a slow success."""
DEMO_SHARE = 0.5
MANY_AT_BOUNDS = 0.5
_CERTAIN = 0.9
_EXPLORATION = ("warmup_std", "init_std", "exploration_std")
"""Settings of the size of exploration, in units of the residual's bound."""


@dataclass(frozen=True)
class TrainingDemos:
    """The demonstrations that a base policy was trained on."""

    path: Path | None
    """The file; None if there is none that can be used."""
    episodes: int | None = None
    """Number of episodes that the base policy was trained on, from the start of the file; None: all."""
    why_not: str = ""
    """Why there is no file."""


@dataclass(frozen=True)
class Choice:
    """The value of a setting, with the reason for it."""

    setting: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Advice:
    """The conclusions from a probe."""

    choices: tuple[Choice, ...]
    verdict: str | None
    """Why a training is pointless; None if it is not."""
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `probe.json`."""
        return dataclasses.asdict(self)


def advise(probe: Probe, learner: Any, demos: TrainingDemos, limit_episodes: bool = False) -> Advice:
    """Choose the residual scale, and the settings of `learner` that depend on the base policy.

    Args:
        probe: the measurements.
        learner: the learner's settings. Only those that it has are chosen.
        demos: the demonstrations that the base policy was trained on.
        limit_episodes: whether the length of training episodes can be limited.
    """
    gated = hasattr(learner, "gate_warmup_episodes")
    authority = _full_authority(probe, gated)
    size, why_size = _tolerated(probe, "correlated")
    if authority is not None:
        scale = Choice("residual_scale", FULL_SCALE, authority)
    else:
        why_gate = f"{_why_no_gate(probe)}, and " if gated else ""
        scale = Choice("residual_scale", size, f"{why_gate}{why_size}")
    choices = [scale, *_exploration(probe, learner, scale.value, authority is not None)]
    if gated:
        choices += _warmup(probe, learner)
        choices += _rewards(probe)
    if limit_episodes:
        choices += _episode_steps(probe)
    if hasattr(learner, "demos"):
        choices += _demos(demos, hasattr(learner, "demo_episodes"))
    return Advice(tuple(choices), _verdict(probe.success), _warnings(probe))


# --- the choices --------------------------------------------------------------------------------------------


def _full_authority(probe: Probe, gated: bool) -> str | None:
    """The reason for a residual that can outweigh the base policy; None if there is none."""
    if probe.success.mean < RARE_SUCCESS:
        return f"the base policy solves {percent(probe.success.mean)}, so there is little to lose"
    if not gated or not probe.predictions:
        return None
    last = probe.predictions[-1]
    if last.area.mean < PREDICTABLE_AREA:
        return None
    first = next(p for p in probe.predictions if p.area.mean >= PREDICTABLE_AREA)
    return (
        f"failures can be predicted from step {first.step} on (area under the ROC curve "
        f"{first.area.mean:.2f}, {last.area.mean:.2f} by step {last.step}), so the gate keeps the residual "
        "away from where the base policy succeeds, and elsewhere there is nothing to lose"
    )


def _why_no_gate(probe: Probe) -> str:
    if not probe.predictions:
        fewer = min(probe.failures, probe.successes, key=lambda ends: ends.episodes)
        if fewer.episodes < MIN_EPISODES:
            outcome = "failures" if fewer is probe.failures else "successes"
            return f"{fewer.episodes} {outcome} are too few to tell whether failures can be predicted"
        return "there are no vectors to predict failures from"
    last = probe.predictions[-1]
    return f"failures cannot be predicted (area under the ROC curve {last.area.mean:.2f} by step {last.step})"


def _tolerated(probe: Probe, kind: str) -> tuple[float, str]:
    """The largest size of noise that costs at most `TOLERATED_LOSS`, and why; half of the smallest one if
    none is tolerated."""
    tolerated: Condition | None = None
    for condition in probe.conditions:
        if condition.kind != kind:
            continue
        if condition.difference.mean < -TOLERATED_LOSS:
            break
        tolerated = condition
    if tolerated is None:
        smallest = next((c for c in probe.conditions if c.kind == kind), None)
        if smallest is None:
            return SIZES[0] / 2, f"no tolerance to {kind} noise was measured"
        return SIZES[0] / 2, (
            f"half of the smallest {kind} noise, since even that ({smallest.size:g}) changes the success by "
            f"{points(smallest.difference.mean)}"
        )
    return tolerated.size, (
        f"the largest {kind} noise that costs the base policy at most {100 * TOLERATED_LOSS:.0f} points of "
        f"success ({points(tolerated.difference.mean)})"
    )


def _exploration(probe: Probe, learner: Any, scale: float, free: bool) -> list[Choice]:
    """Size and correlation of the exploration; `free` if it need not spare the base policy."""
    sizes = {name: getattr(learner, name) for name in _EXPLORATION if hasattr(learner, name)}
    correlation = getattr(learner, "noise_correlation", None)
    if free:
        why = "the learner's default, since there is nothing to lose where the residual acts"
        kept = dict(sizes) if correlation is None else {**sizes, "noise_correlation": correlation}
        return [Choice(name, value, why) for name, value in kept.items()]
    # white noise in place of correlated noise where the base policy tolerates more of it
    correlated, white = (_tolerated(probe, kind) for kind in ("correlated", "white"))
    choices = []
    kind, (size, why) = "correlated", correlated
    if correlation is not None:
        if white[0] > correlated[0] or correlation == 0.0:
            kind, (size, why) = "white", white
        value = correlation if kind == "correlated" else 0.0
        because = (
            f"the base policy tolerates white noise of {white[0]:g}, correlated noise of {correlated[0]:g}"
        )
        choices.append(Choice("noise_correlation", value, because))
    for name, default in sizes.items():
        std = min(default, round(size / scale, 3))
        within = f"times the scale it is noise of {std * scale:.2g}, within {size:g}"
        choices.append(Choice(name, std, f"{within}: {why}"))
    return choices


def _warmup(probe: Probe, learner: Any) -> list[Choice]:
    """The number of episodes at the start in which the base policy acts alone, and of failures among them
    that are waited for."""
    failing = 1.0 - probe.success.mean
    least, most = WARMUP_EPISODES
    needed = math.ceil(FAILURES_NEEDED / failing) if failing > 0.0 else most
    episodes = min(max(needed, least), most)
    successes = round(episodes * probe.success.mean)
    reason = (
        f"with {percent(probe.success.mean)} success, about {successes} successes and {episodes - successes} "
        "failures for the gate to learn from"
    )
    choices = [Choice("gate_warmup_episodes", episodes, reason)]
    patience = (episodes - successes) // 2
    if patience < getattr(learner, "gate_min_failures", 0):
        why = "half of the failures expected by then, so that the warm-up ends even with a good base policy"
        choices.append(Choice("gate_min_failures", patience, why))
    return choices


def _rewards(probe: Probe) -> list[Choice]:
    """The factor of the rewards, which brings them to one size in all tasks."""
    if probe.largest_reward == 0.0:
        return []
    reason = f"the largest reward of a step was {probe.largest_reward:.3g}; scaled, it is {LARGEST_REWARD:g}"
    return [Choice("reward_scale", float(f"{LARGEST_REWARD / probe.largest_reward:.3g}"), reason)]


def _episode_steps(probe: Probe) -> list[Choice]:
    """The limit of training episodes."""
    if probe.slow_success is None:
        return []
    reason = (
        f"{TRAINING_LENGTH:g} times the 95th percentile of the lengths of successes "
        f"({probe.slow_success:.0f}): time for the residual after the base policy is stuck, without waiting "
        "for the end of each episode"
    )
    return [Choice("train_episode_steps", math.ceil(TRAINING_LENGTH * probe.slow_success), reason)]


def _demos(demos: TrainingDemos, has_episodes: bool) -> list[Choice]:
    """Whether demonstrations are part of the batches."""
    if demos.path is None:
        return [Choice("demo_share", 0.0, f"without demonstrations, since {demos.why_not}")]
    reason = "they show what to do where the base policy fails, which exploration rarely finds"
    choices = [
        Choice("demos", str(demos.path), "the base policy was trained on these demonstrations"),
        Choice("demo_share", DEMO_SHARE, reason),
    ]
    if has_episodes and demos.episodes is not None:
        choices.append(Choice("demo_episodes", demos.episodes, "as many as the base policy was trained on"))
    return choices


# --- verdict and warnings -----------------------------------------------------------------------------------


def _verdict(success: Summary) -> str | None:
    """Why a training is pointless. Few episodes prove nothing: the interval has to agree."""
    assert success.low is not None
    assert success.high is not None
    interval = f"95 % interval {100 * success.low:.1f} to {percent(success.high)}"
    if success.mean == 0.0 and success.high <= 1.0 - _CERTAIN:
        return (
            f"the base policy solved none of {success.n} episodes ({interval}): nothing can be learned from "
            "it, since a residual corrects a policy that almost works"
        )
    if success.mean == 1.0 and success.low >= _CERTAIN:
        return f"the base policy solved all of {success.n} episodes ({interval}): there is nothing to gain"
    return None


def _warnings(probe: Probe) -> tuple[str, ...]:
    if probe.at_bounds <= MANY_AT_BOUNDS:
        return ()
    return (
        f"{percent(probe.at_bounds)} of the entries of the base actions lie at the bounds of the action "
        "space, where a residual can push in one direction only: check the control mode, the action scale "
        "and the checkpoint",
    )


def percent(value: float) -> str:
    """A rate as text: `61.5 %`."""
    return f"{100 * value:.1f} %"


def points(difference: float) -> str:
    """A difference of rates in percentage points: `−9.4 pp`."""
    return f"{100 * difference:+.1f} pp".replace("-", "−")
