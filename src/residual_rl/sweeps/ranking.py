"""Ranking of the points of a grid, with intervals over training seeds and episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residual_rl.errors import ConfigError
from residual_rl.utils.statistics import LEVEL, Summary, paired_difference, proportion

Outcomes = Mapping[int, Mapping[int, float]]
"""Success (0 or 1) of a point of the grid, by training seed and then by episode seed. All training seeds have
the same episodes."""
RESAMPLES = 10_000


@dataclass(frozen=True)
class Ranked:
    """A point of the grid in the ranking."""

    point: str
    success: Summary
    """Success rate over all seeds and episodes."""
    per_seed: dict[int, float]
    """Success rate by training seed."""
    tied: bool
    """Whether its interval overlaps that of the first point; true for the first point itself."""
    difference: Summary | None
    """Success rate minus that of the first point, paired by training seed and episode. None for the first
    point, and without common seeds."""


def rank(points: Mapping[str, Outcomes]) -> list[Ranked]:
    """Rank the points by the lower ends of their intervals, in descending order.

    A good rate over few episodes has a wide interval and therefore a low end. Ties are resolved by the mean,
    then by the order of `points`.
    """
    summaries = {name: success_of(outcomes) for name, outcomes in points.items()}
    order = sorted(points, key=lambda name: (_low(summaries[name]), summaries[name].mean), reverse=True)
    ranked = []
    for name in order:
        best = order[0]
        per_seed = {seed: sum(episodes.values()) / len(episodes) for seed, episodes in points[name].items()}
        tied = _high(summaries[name]) >= _low(summaries[best])
        difference = None if name == best else difference_of(points[name], points[best])
        ranked.append(Ranked(name, summaries[name], per_seed, tied, difference))
    return ranked


def success_of(outcomes: Outcomes) -> Summary:
    """Success rate over all seeds and episodes, with a 95 % interval that spans two intervals.

    One is Wilson's interval of all episodes as a single sample, which has a width above 0 even if every
    episode succeeds. The other is a bootstrap that resamples training seeds and episodes independently (the
    crossed design of Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007), which is wider
    if the seeds differ. With a single seed, neither includes the variation between seeds.
    """
    values = _matrix(outcomes)
    pooled = proportion(values.flatten().tolist())
    return _wider(pooled, *_bootstrap(values))


def difference_of(a: Outcomes, b: Outcomes) -> Summary | None:
    """Success rate of `a` minus that of `b` over their common training seeds, paired by seed and episode.

    The interval spans that of Agresti and Min for matched proportions and the bootstrap of `success_of`.
    None without common seeds.
    """
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return None
    first, second = (_matrix({seed: outcomes[seed] for seed in seeds}) for outcomes in (a, b))
    if first.shape != second.shape or any(set(a[seed]) != set(b[seed]) for seed in seeds):
        raise ConfigError("two points of the grid were evaluated on different episodes")
    flat = [dict(enumerate(values.flatten().tolist())) for values in (first, second)]
    return _wider(paired_difference(flat[0], flat[1], binary=True), *_bootstrap(first - second))


def _matrix(outcomes: Outcomes) -> NDArray[np.float64]:
    """[S, E]: seeds and episodes in ascending order."""
    episodes = [sorted(by_episode) for by_episode in outcomes.values()]
    if not episodes or any(e != episodes[0] for e in episodes):
        raise ConfigError("the training seeds of a point of the grid were evaluated on different episodes")
    return np.array(
        [[outcomes[seed][episode] for episode in episodes[0]] for seed in sorted(outcomes)], dtype=np.float64
    )


def _bootstrap(values: NDArray[np.float64]) -> tuple[float, float]:
    """Percentiles of the mean of `values` [S, E] with resampled rows and columns; the seed is fixed."""
    random = np.random.default_rng(0)
    rows, columns = (random.multinomial(n, np.full(n, 1.0 / n), size=RESAMPLES) for n in values.shape)
    means = ((rows @ values) * columns).sum(1) / values.size
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _wider(summary: Summary, low: float, high: float) -> Summary:
    return Summary(summary.mean, min(_low(summary), low), max(_high(summary), high), summary.n)


def _low(summary: Summary) -> float:
    return summary.mean if summary.low is None else summary.low


def _high(summary: Summary) -> float:
    return summary.mean if summary.high is None else summary.high
