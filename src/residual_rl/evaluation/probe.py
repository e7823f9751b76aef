"""The probe of a base policy: how much disturbance it tolerates, how its episodes end, and how early a
failure can be predicted.

It measures; `probe_advice` draws the conclusions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from residual_rl.config import ResidualCfg, TrainCfg
from residual_rl.evaluation.disturbances import Kind, make_disturbance
from residual_rl.evaluation.failure_prediction import MIN_EPISODES, held_out_failure_logits
from residual_rl.evaluation.probe_episodes import Episode, disturbed_successes, record_episodes
from residual_rl.factory import make_residual_env
from residual_rl.residual_env import ResidualEnv
from residual_rl.utils import statistics
from residual_rl.utils.statistics import Summary

FORMAT_VERSION = 1
"""Version of `probe.json`."""
SIZES = (0.05, 0.1, 0.2)
"""Sizes of the noise, in units of the env's `residual_unit`."""
OFFSET_SIZE = 0.1
CONDITIONS: tuple[tuple[Kind, float], ...] = (
    *(("correlated", size) for size in SIZES),
    *(("white", size) for size in SIZES),
    ("offset", OFFSET_SIZE),
    ("delay", 0.0),
)
"""Kind and size of the disturbances."""
SHARES = (0.0, 0.1, 0.25, 0.5)
"""Times of the predictions of failure, as shares of the median length of a success."""
STALL_STEPS = 25
"""Steps at the end of an episode in which the base policy is judged to have stalled or not."""
STALL_CHANGE = 0.05
"""Mean ‖actionₜ - actionₜ₋₁‖ below which it has stalled."""
LATE = 1.5
"""Disturbed episodes are cut off, and count as failures, after this multiple of the 95th percentile of the
lengths of undisturbed successes."""
_SAMPLES = 2
"""Samples of a stochastic base policy, of which the spread is measured."""

OnProgress = Callable[[int, float | None], None]


def _silent(done: int, success: float | None) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Condition:
    """Success of the base policy under a disturbance."""

    kind: Kind
    size: float
    """In units of the env's `residual_unit`; 0 for a delay."""
    success: Summary
    difference: Summary
    """Minus the undisturbed success in the same episodes."""


@dataclass(frozen=True)
class Ends:
    """How episodes with one outcome end."""

    episodes: int
    terminated: int
    """Number that terminated; the others were truncated."""
    median_length: float | None
    """[steps]; None without an episode."""
    stalled: int
    """Number in which the action hardly changed at the end: by less than `STALL_CHANGE` a step over the last
    `STALL_STEPS` steps."""
    disagreement: float | None
    """Mean standard deviation between the samples or the ensemble of the base policy, in units of the action
    range; None where it has none."""


@dataclass(frozen=True)
class Prediction:
    """How well failures can be told from successes at one time."""

    share: float
    """The time as a share of the median length of a success."""
    step: int
    area: Summary
    """Area under the ROC curve: 0.5 is chance. It counts the episodes that are still running."""


@dataclass(frozen=True)
class Probe:
    """The measurements of a base policy."""

    task: str
    base_policy: str
    success: Summary
    """Undisturbed."""
    successes: Ends
    failures: Ends
    at_bounds: float
    """Share of the entries of the base actions that lie at the bounds of the action space."""
    largest_reward: float
    """The largest |reward| of a step without disturbance."""
    conditions: tuple[Condition, ...]
    """Empty if the base policy never succeeded."""
    slow_success: float | None
    """95th percentile of the lengths of successes [steps]; None if the base policy never succeeded."""
    max_disturbed_steps: int | None
    """Steps after which disturbed episodes, and the same ones without disturbance in the difference, counted
    as failures."""
    predictions: tuple[Prediction, ...]
    """Empty with fewer than `MIN_EPISODES` successes or failures."""
    seeds: tuple[int, ...]
    """Seeds of the undisturbed episodes. The disturbed ones have the first of them."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `probe.json`."""
        plain: dict[str, Any] = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        plain["success"] = self.success.to_json()
        for part, condition in zip(plain["conditions"], self.conditions, strict=True):
            part["success"] = condition.success.to_json()
            part["difference"] = condition.difference.to_json()
        for part, prediction in zip(plain["predictions"], self.predictions, strict=True):
            part["area"] = prediction.area.to_json()
        return plain


def num_episodes(num_seeds: int, num_disturbed: int) -> int:
    """Largest number of episodes that a probe runs."""
    return num_seeds + len(CONDITIONS) * num_disturbed


def probe(
    cfg: TrainCfg,
    seeds: Sequence[int],
    num_disturbed: int,
    num_envs: int,
    on_progress: OnProgress = _silent,
) -> Probe:
    """Measure the base policy of a run, without a residual.

    Args:
        cfg: settings of the task and the base policy. Failures are predicted from the observations of its
            learner and from the base action.
        seeds: seeds of the undisturbed episodes.
        num_disturbed: number of episodes for each disturbance; they have the first of the seeds, so that
            differences are paired.
        num_envs: number of envs; the results do not depend on it.
        on_progress: called with the number of finished episodes, of at most `num_episodes`, and the success
            rate of those of the current condition.
    """
    alone = dataclasses.replace(cfg, residual=ResidualCfg(residual_scale=0.0, residual_penalty=0.0))
    # Without disturbance, with a second sample of a stochastic base policy: the first is executed.
    env = make_residual_env(_with_samples(alone), min(num_envs, len(seeds)))
    try:
        obs_keys = {*(getattr(cfg.learner, "obs_keys", None) or ("state",)), "base_action"}
        episodes = record_episodes(env, seeds, sorted(obs_keys), lambda done: on_progress(done, None))
        max_episode_steps = env.vec_env.max_episode_steps
    finally:
        env.close()

    # Under each disturbance, on the first of the seeds.
    solved = [len(episode) for episode in episodes if episode.success]
    limit, slow, conditions = None, None, []
    if solved:
        slow = float(torch.tensor(solved, dtype=torch.float64).quantile(0.95))
        limit = min(max_episode_steps, math.ceil(LATE * slow))
        paired = {seed: e.success and len(e) <= limit for seed, e in zip(seeds, episodes, strict=True)}
        paired = {seed: paired[seed] for seed in seeds[:num_disturbed]}
        env = make_residual_env(alone, min(num_envs, num_disturbed))
        try:
            for i, (kind, size) in enumerate(CONDITIONS):
                done = len(seeds) + i * num_disturbed
                conditions.append(_disturb(env, kind, size, paired, limit, done, on_progress))
        finally:
            env.close()

    return Probe(
        task=cfg.task_id,
        base_policy=cfg.base_policy_id,
        success=statistics.proportion([episode.success for episode in episodes]),
        successes=_ends([episode for episode in episodes if episode.success]),
        failures=_ends([episode for episode in episodes if not episode.success]),
        at_bounds=float(torch.cat([episode.at_bounds for episode in episodes]).double().mean()),
        largest_reward=max(episode.largest_reward for episode in episodes),
        conditions=tuple(conditions),
        slow_success=slow,
        max_disturbed_steps=limit,
        predictions=predict_failures(episodes),
        seeds=tuple(int(seed) for seed in seeds),
    )


def _with_samples(cfg: TrainCfg) -> TrainCfg:
    """`cfg` with enough samples of a stochastic base policy to measure their spread."""
    if getattr(cfg.base, "num_samples", _SAMPLES) >= _SAMPLES:
        return cfg
    return dataclasses.replace(cfg, base=dataclasses.replace(cfg.base, num_samples=_SAMPLES))


def _disturb(
    env: ResidualEnv,
    kind: Kind,
    size: float,
    paired: Mapping[int, bool],
    limit: int,
    before: int,
    on_progress: OnProgress,
) -> Condition:
    """Success under a disturbance, compared with the undisturbed outcomes `paired` by seed; `before` episodes
    were run before."""
    outcomes = disturbed_successes(
        env,
        list(paired),
        make_disturbance(kind, size, env.vec_env),
        limit,
        lambda done: on_progress(before + done, None),
    )
    success = statistics.proportion(outcomes)
    on_progress(before + len(outcomes), success.mean)
    disturbed = dict(zip(paired, map(float, outcomes), strict=True))
    undisturbed = {seed: float(outcome) for seed, outcome in paired.items()}
    difference = statistics.paired_difference(disturbed, undisturbed, binary=True)
    return Condition(kind, size, success, difference)


def _ends(episodes: Sequence[Episode]) -> Ends:
    """How `episodes`, which have the same outcome, end."""
    spreads = [episode.disagreement.mean() for episode in episodes if episode.disagreement is not None]
    return Ends(
        episodes=len(episodes),
        terminated=sum(episode.terminated for episode in episodes),
        median_length=float(median(map(len, episodes))) if episodes else None,
        stalled=sum(is_stalled(episode.changes) for episode in episodes),
        disagreement=float(torch.stack(spreads).mean()) if spreads else None,
    )


def is_stalled(changes: Tensor) -> bool:
    """Whether the action hardly changed in the last `STALL_STEPS` steps of an episode with these `changes`
    [T - 1] of the action; not of a shorter one."""
    return len(changes) >= STALL_STEPS and float(changes[-STALL_STEPS:].mean()) < STALL_CHANGE


def predict_failures(episodes: Sequence[Episode]) -> tuple[Prediction, ...]:
    """How well the failures among `episodes` can be told from the successes at the times of `SHARES`.

    Empty with fewer than `MIN_EPISODES` of either kind, or without observations. A time at which no episode
    of one kind is running any more is left out.
    """
    success = [episode.success for episode in episodes]
    if min(sum(success), len(success) - sum(success)) < MIN_EPISODES or episodes[0].obs.shape[1] == 0:
        return ()
    logits = held_out_failure_logits([episode.obs for episode in episodes], success)
    length = median(len(episode) for episode in episodes if episode.success)
    predictions = []
    for share in SHARES:
        step = int(share * length)
        running = [
            (float(x[step]), solved) for x, solved in zip(logits, success, strict=True) if len(x) > step
        ]
        failed = [score for score, solved in running if not solved]
        solved = [score for score, solved in running if solved]
        if failed and solved:
            predictions.append(Prediction(share, step, statistics.area_under_curve(failed, solved)))
    return tuple(predictions)
