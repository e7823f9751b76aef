"""Which point of a grid is best, as far as seeds and episodes can tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residual_rl.errors import ConfigError
from residual_rl.utils.statistics import LEVEL, Summary, paired_difference, proportion

Outcomes = Mapping[int, Mapping[int, float]]
"""Success, 0 or 1, of a point of the grid: by training seed, then by episode seed, the same episodes for
every training seed."""
RESAMPLES = 10_000


@dataclass(frozen=True)
class Ranked:
    """A point of the grid in the ranking."""

    point: str
    success: Summary
    """Over all seeds and episodes."""
    per_seed: dict[int, float]
    """Success rate by training seed."""
    tied: bool
    """Whether its interval overlaps that of the first, so that nothing tells them apart. True for the first
    itself."""
    difference: Summary | None
    """It less the first, paired by training seed and episode; None for the first, and where they have no seed
    in common."""


def rank(points: Mapping[str, Outcomes]) -> list[Ranked]:
    """The points by the lower ends of their intervals, the highest first: a point that was lucky with few
    episodes has a low one.

    Equal ends are told apart by the mean, then by the order of `points`.
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
    """The success rate over all seeds and episodes, with a 95 % interval: from the lower to the higher of the
    ends of two.

    One is Wilson's of all episodes as a single sample, which keeps its width where every episode succeeds;
    the other is a bootstrap that draws training seeds and episodes anew, each with replacement and apart (the
    crossed design of Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007), which is wider
    where the seeds differ. Of a single seed neither knows what another would give.
    """
    values = _matrix(outcomes)
    pooled = proportion(values.flatten().tolist())
    return _wider(pooled, *_bootstrap(values))


def difference_of(a: Outcomes, b: Outcomes) -> Summary | None:
    """The success rate of `a` less that of `b` over the training seeds that both have, paired by seed and
    episode.

    The interval is the wider, at each end, of Agresti and Min's for matched proportions and of the bootstrap
    of `success_of`.
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
    """Percentiles of the mean of `values` [S, E] with rows and columns drawn with replacement; always the
    same draws."""
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
