"""Intervals against published and hand-worked values, and against `scipy.stats`."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from residual_rl.errors import ConfigError
from residual_rl.utils.statistics import (
    Summary,
    across_runs,
    area_under_curve,
    episodes_to_detect,
    mean,
    paired_difference,
    proportion,
    student_t,
    summarize,
    won_and_lost,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_proportion__matches_published_wilson_intervals(
    successes: int, n: int, low: float, high: float
) -> None:
    summary = proportion([True] * successes + [False] * (n - successes))
    assert summary.mean == successes / n
    assert (summary.low, summary.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert summary.n == n


def test_proportion__interval_of_all_and_none_ends_at_the_edge() -> None:
    # n / (n + z²) with z² = 3.841459
    everything = proportion([1.0] * 200)
    assert everything == Summary(1.0, pytest.approx(200 / 203.841459, abs=1e-8), 1.0, 200)
    assert proportion([0] * 200).low == 0.0
    assert proportion([1]).low == pytest.approx(1 / 4.841459, abs=1e-7)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (30, 2.0423), (199, 1.9720)],
)
def test_student_t__matches_published_quantiles(degrees: int, quantile: float) -> None:
    assert student_t(degrees) == pytest.approx(quantile, abs=5e-5)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    # of the incomplete beta function's finite series (Abramowitz & Stegun 26.7.3 and 26.7.4), bisected
    [
        (1, 12.706204736174694),
        (2, 4.302652729749462),
        (7, 2.364624251592784),
        (30, 2.0422724563012378),
        (199, 1.971956544249395),
    ],
)
def test_student_t__literal_values(degrees: int, quantile: float) -> None:
    assert student_t(degrees) == pytest.approx(quantile, abs=1e-9)


def test_proportion__equals_scipys_wilson_interval() -> None:
    for n in (1, 7, 40):
        for successes in range(n + 1):
            interval = stats.binomtest(successes, n).proportion_ci(method="wilson")
            summary = proportion([1] * successes + [0] * (n - successes))
            assert (summary.low, summary.high) == (
                pytest.approx(interval.low, abs=1e-9),
                pytest.approx(interval.high, abs=1e-9),
            )


def test_mean__has_a_t_interval() -> None:
    # mean 3, standard deviation √2.5, standard error √0.5 = 0.707107, t(4) = 2.776445: half 1.963243
    assert mean([1, 2, 3, 4, 5]) == Summary(
        3.0, pytest.approx(1.036757, abs=1e-6), pytest.approx(4.963243, abs=1e-6), 5
    )
    assert mean([2.5]) == Summary(2.5, None, None, 1)
    assert mean([2.5]).to_json() == {"mean": 2.5, "interval": None, "n": 1}
    assert mean([0.5, 0.5, 0.5]).to_json() == {"mean": 0.5, "interval": [0.5, 0.5], "n": 3}


def test_summarize__chooses_the_interval_by_the_kind_of_values() -> None:
    values = [1.0, 0.0, 1.0, 1.0]
    assert summarize(values, binary=True) == proportion(values)
    assert summarize(values, binary=False) == mean(values)


def test_paired_difference__binary_matches_values_worked_out_by_hand() -> None:
    # both 1, only a 1, only b 7, neither 12: centre -6/23, half z·√(8 + 1 - 36/23)/23 = 0.232357
    cells = [(1, 1)] * 1 + [(1, 0)] * 1 + [(0, 1)] * 7 + [(0, 0)] * 12
    a, b = ({seed: cell[i] for seed, cell in enumerate(cells)} for i in (0, 1))
    difference = paired_difference(a, b, binary=True)
    assert difference.mean == pytest.approx(-6 / 21)
    assert (difference.low, difference.high) == (
        pytest.approx(-0.493226, abs=1e-5),
        pytest.approx(-0.028513, abs=1e-5),
    )
    swapped = paired_difference(b, a, binary=True)
    assert (swapped.low, swapped.high) == (pytest.approx(-difference.high), pytest.approx(-difference.low))


def test_paired_difference__equal_outcomes_keep_a_width() -> None:
    ones, zeros = dict.fromkeys(range(98), 1), dict.fromkeys(range(98), 0)
    same = paired_difference(ones, ones, binary=True)  # half z·√1 / 100
    assert (same.mean, same.low, same.high) == (
        0.0,
        pytest.approx(-0.0195996, abs=1e-7),
        pytest.approx(0.0195996, abs=1e-7),
    )
    # centre 0.98, half z·√(98 + 1 - 98²/100) / 100 = 0.0337205: cut at 1, since an adjusted Wald interval can
    # leave [-1, 1]
    apart = paired_difference(ones, zeros, binary=True)
    assert (apart.mean, apart.low, apart.high) == (1.0, pytest.approx(0.9462795, abs=1e-6), 1.0)


def test_paired_difference__pairs_by_seed_not_by_order() -> None:
    a, b = {1: 1.0, 2: 5.0, 3: 9.0}, {3: 8.0, 2: 3.0, 1: 1.0}
    # differences 0, 2, 1: mean 1, standard error 1/√3, t(2) = 4.302653
    assert paired_difference(a, b) == Summary(
        1.0, pytest.approx(1 - 2.484138, abs=1e-6), pytest.approx(1 + 2.484138, abs=1e-6), 3
    )
    with pytest.raises(ConfigError, match=r"same episode seeds in both; 2 are in one only, e\.g\. 3"):
        paired_difference({1: 1.0, 3: 1.0}, {1: 1.0, 4: 1.0})


def test_across_runs__averages_over_runs() -> None:
    runs = [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    # means 0.75, 0.5, 1: mean 0.75, standard error 0.25/√3, t(2): half 0.621034, cut at 1
    assert across_runs(runs, binary=True) == Summary(0.75, pytest.approx(0.128966, abs=1e-6), 1.0, 3)
    assert across_runs([[1.0, 3.0]]) == Summary(2.0, None, None, 1)


def test_across_runs__equal_runs_have_the_interval_of_all_episodes() -> None:
    """Of 600 successes in 600 episodes: [n / (n + z²), 1], not [1, 1]."""
    summary = across_runs([[1.0] * 200] * 3, binary=True)
    assert summary == Summary(1.0, pytest.approx(600 / 603.841459, abs=1e-8), 1.0, 3)
    halves = across_runs([[1, 0] * 50] * 2, binary=True)
    pooled = proportion([1, 0] * 100)
    assert (halves.low, halves.high) == (pooled.low, pooled.high)


def test_summarize__no_values_raise() -> None:
    for function, nothing in ((proportion, []), (mean, []), (across_runs, []), (across_runs, [[1.0], []])):
        with pytest.raises(ConfigError, match="no episode ended"):
            function(nothing)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="no episode ended"):
        paired_difference({}, {})


def test_proportion__values_other_than_0_and_1_raise() -> None:
    with pytest.raises(ConfigError, match=r"0 or 1, not 0\.5"):
        proportion([1.0, 0.5])


def test_area_under_curve__counts_pairs_in_order_and_ties_as_half() -> None:
    """Pairs: 3 > 1, 3 > 2, 2 > 1, 2 = 2, so that 3.5 of 4 are in order."""
    assert area_under_curve([3.0, 2.0], [1.0, 2.0]).mean == 3.5 / 4
    found = area_under_curve([0.9, 0.4, 0.7, 0.6], [0.1, 0.5, 0.65])
    u = stats.mannwhitneyu([0.9, 0.4, 0.7, 0.6], [0.1, 0.5, 0.65]).statistic
    assert (found.mean, found.n) == (pytest.approx(u / 12), 7)


def test_area_under_curve__has_the_interval_of_delong() -> None:
    """By hand: shares on the right side 1, 1/2 (variance 1/8) and 1/2, 1 (variance 1/8); the standard error
    is the root of 1/16 + 1/16."""
    found = area_under_curve([3.0, 1.5], [1.0, 2.0])
    half = 1.959964 * (1 / 8) ** 0.5
    assert (found.mean, found.low, found.high) == (0.75, pytest.approx(0.75 - half, abs=1e-6), 1.0)


def test_area_under_curve__of_a_single_case_has_no_interval() -> None:
    assert area_under_curve([1.0], [0.0, 2.0]) == Summary(0.5, None, None, 3)
    with pytest.raises(ConfigError, match="no values"):
        area_under_curve([1.0], [])


@pytest.mark.parametrize(
    ("difference", "discordant", "expected"),
    [
        # by hand: (1.959964 √0.2 + 0.841621 √(0.2 − 0.0025))² / 0.0025 = (0.876523 + 0.374022)² / 0.0025
        (0.05, 0.2, 626),
        # the smallest share with which they can differ by 5 points, also without any discordant pair:
        # (1.959964 √0.05 + 0.841621 √(0.05 − 0.0025))² / 0.0025 = (0.438261 + 0.183427)² / 0.0025
        (0.05, 0.05, 155),
        (0.05, 0.0, 155),
        # (1.959964 + 0)² / 1: all pairs differ in the same direction
        (1.0, 1.0, 4),
    ],
)
def test_episodes_to_detect__is_the_formula_of_connor(
    difference: float, discordant: float, expected: int
) -> None:
    assert episodes_to_detect(difference, discordant) == expected


@pytest.mark.parametrize("discordant", [0.1, 0.35])
def test_episodes_to_detect__gives_the_power_in_a_simulation(discordant: float) -> None:
    n = episodes_to_detect(0.05, discordant)
    won, lost = (discordant + 0.05) / 2, (discordant - 0.05) / 2
    draws = np.random.default_rng(1).multinomial(n, [won, lost, 1 - won - lost], 40_000)
    # McNemar's test: (won − lost)² / (won + lost) is above the quantile of χ² with one degree of freedom
    significant = (draws[:, 0] - draws[:, 1]) ** 2 > stats.chi2.ppf(0.95, 1) * (draws[:, 0] + draws[:, 1])
    assert significant.mean() == pytest.approx(0.8, abs=0.03)  # the formula is an approximation


def test_won_and_lost__counts_pairs_that_differ() -> None:
    assert won_and_lost([(1, 1), (1, 0), (0, 1), (1, 0), (0, 0)]) == (2, 1)
    assert won_and_lost([]) == (0, 0)
