"""Means with 95 % intervals: of proportions, continuous values, paired differences, and across training
runs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

from residual_rl.errors import ConfigError

LEVEL = 0.95
Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
"""The normal quantile of a two-sided 95 % interval, 1.95996…"""


@dataclass(frozen=True)
class Summary:
    """A mean with its two-sided 95 % interval; `low` and `high` are None for a continuous mean of a single
    value."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, Any]:
        """`{"mean": …, "interval": [low, high] or null, "n": …}`"""
        return {
            "mean": self.mean,
            "interval": None if self.low is None else [self.low, self.high],
            "n": self.n,
        }


def proportion(outcomes: Sequence[float | bool]) -> Summary:
    """The proportion of ones among zeros and ones, with Wilson's score interval (Wilson 1927, no continuity
    correction).

    Raises `ConfigError` for other values, and without values.
    """
    n = _count(outcomes)
    p = fmean(_binary(outcomes))
    low, high = _wilson(p, n)
    return Summary(p, low, high, n)


def mean(values: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf)) -> Summary:
    """The mean, with Student's t interval clipped to `bounds`; a single value has no interval."""
    n = _count(values)
    average = fmean(values)
    if n == 1:
        return Summary(average, None, None, 1)
    half = student_t(n - 1) * stdev(values) / math.sqrt(n)
    return Summary(average, max(bounds[0], average - half), min(bounds[1], average + half), n)


def summarize(values: Sequence[float | bool], binary: bool) -> Summary:
    """`proportion` of binary outcomes, else `mean`."""
    return proportion(values) if binary else mean(values)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], binary: bool = False) -> Summary:
    """The mean of a − b over episode seeds.

    Continuous values: Student's t interval of the differences. Binary outcomes: the adjusted Wald interval of
    Agresti & Min (2005, "Simple improved confidence intervals for comparing matched proportions", Statistics
    in Medicine 24), clipped to [-1, 1]. It adds half an episode to each of the four outcomes, so its width is
    above 0 even where no pair differs.

    Args:
        a: values by episode seed.
        b: values by the same episode seeds. Raises `ConfigError` for others.
        binary: whether the values are outcomes, 0 or 1.
    """
    if set(a) != set(b):
        odd = sorted(set(a) ^ set(b))
        raise ConfigError(
            f"a paired difference needs the same episode seeds in both; {len(odd)} are in one only, e.g."
            f" {odd[0]}"
        )
    n = _count(a)
    if not binary:
        return mean([a[seed] - b[seed] for seed in a])
    first, second = _binary([a[seed] for seed in a]), _binary([b[seed] for seed in a])
    only_a = sum(x > y for x, y in zip(first, second, strict=True))
    only_b = sum(x < y for x, y in zip(first, second, strict=True))
    centre = (only_a - only_b) / (n + 2)
    half = Z * math.sqrt(only_a + only_b + 1 - (only_a - only_b) ** 2 / (n + 2)) / (n + 2)
    return Summary((only_a - only_b) / n, max(-1.0, centre - half), min(1.0, centre + half), n)


def won_and_lost(pairs: Iterable[tuple[float, float]]) -> tuple[int, int]:
    """The numbers of pairs whose first is larger, and whose second is."""
    differences = [first - second for first, second in pairs]
    return sum(d > 0 for d in differences), sum(d < 0 for d in differences)


def episodes_to_detect(difference: float, discordant: float, power: float = 0.8) -> int:
    """The number of paired episodes with which a difference of two success rates is found to be significant,
    at the level of 5 % on both sides, with probability `power`.

    Source: Connor 1987, "Sample size for testing differences in proportions for the paired-sample design",
    Biometrics 43, for McNemar's test without continuity correction.

    Args:
        difference: of the success rates, in (0, 1].
        discordant: share of the episodes that only one of the two policies solves. At least `difference` of
            them must be, so that a smaller share is replaced by it.
        power: in (0, 1).
    """
    discordant = max(discordant, difference)
    by_chance = Z * math.sqrt(discordant)
    by_power = NormalDist().inv_cdf(power) * math.sqrt(discordant - difference**2)
    return math.ceil((by_chance + by_power) ** 2 / difference**2)


def area_under_curve(positive: Sequence[float], negative: Sequence[float]) -> Summary:
    """The area under the ROC curve: the probability that a positive case has a larger score than a negative
    one, where ties count half.

    The interval is that of DeLong, DeLong and Clarke-Pearson (1988, "Comparing the areas under two or more
    correlated receiver operating characteristic curves", Biometrics 44), clipped to [0, 1]; there is none
    with a single case of either kind. Raises `ConfigError` without cases of both kinds.
    """
    num_positive, num_negative = _count(positive), _count(negative)

    def share_below(score: float, others: Sequence[float]) -> float:
        return fmean(0.5 * ((score > other) + (score >= other)) for other in others)

    # the share of the other kind that each case is on the right side of
    right = [share_below(score, negative) for score in positive]
    area = fmean(right)
    if min(num_positive, num_negative) == 1:
        return Summary(area, None, None, num_positive + num_negative)
    wrong = [share_below(score, positive) for score in negative]
    half = Z * math.sqrt(stdev(right) ** 2 / num_positive + stdev(wrong) ** 2 / num_negative)
    return Summary(area, max(0.0, area - half), min(1.0, area + half), num_positive + num_negative)


def across_runs(runs: Sequence[Sequence[float | bool]], binary: bool = False) -> Summary:
    """The mean over training runs, with Student's t interval of the runs' means.

    Episodes of one run are correlated: pooling those of all runs would give an interval that is too narrow.
    Runs with equal means are no proof of the opposite, so for outcomes the interval is the wider, at each
    end, of Student's t and of that of all episodes as one sample.

    Args:
        runs: the episodes' values of each run.
        binary: whether the values are outcomes, 0 or 1.
    """
    _count(runs)
    means = [fmean(_binary(run) if binary else run) for run in runs if _count(run)]
    if not binary:
        return mean(means)
    summary, pooled = mean(means, (0.0, 1.0)), proportion([outcome for run in runs for outcome in run])
    if summary.low is None or summary.high is None or pooled.low is None or pooled.high is None:
        return summary
    return dataclasses.replace(summary, low=min(summary.low, pooled.low), high=max(summary.high, pooled.high))


@functools.cache
def student_t(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's t distribution with `degrees` degrees of freedom.

    `scipy.stats.t.ppf` calls the same `scipy.special.stdtrit`, but takes three times as long to import.
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + LEVEL / 2))


def _wilson(p: float, n: int) -> tuple[float, float]:
    """The ends of the interval, exactly 0 and 1 where no and every outcome is a success."""
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return (0.0 if p == 0 else centre - half), (1.0 if p == 1 else centre + half)


def _binary(outcomes: Sequence[float | bool]) -> list[float]:
    values = [float(x) for x in outcomes]
    if not set(values) <= {0.0, 1.0}:
        raise ConfigError(f"an outcome is 0 or 1, not {next(v for v in values if v not in (0.0, 1.0))}")
    return values


def _count(values: Sequence[Any] | Mapping[int, Any]) -> int:
    if len(values) == 0:
        raise ConfigError("no values to summarize: no episode ended")
    return len(values)
