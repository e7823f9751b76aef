"""The anytime-valid paired test, against values by hand, closed forms, quadrature and simulation."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import betainc, betaln

from residual_rl.evaluation.sequential import ALPHA, gain_interval, log_e_value, may_show_gain, shows_gain

COUNTS = [(1, 0), (0, 1), (7, 0), (13, 4), (32, 10), (60, 40), (150, 3)]


@pytest.mark.parametrize(
    ("won", "lost", "e"),
    # The means of 1 + cos φ, 1 - cos φ, (1 + cos φ)² and (1 + cos φ)(1 - cos φ) over φ in [0, π/2], where
    # cos φ has mean 2/π and cos² φ has mean 1/2.
    [(0, 0, 1), (1, 0, 1 + 2 / math.pi), (0, 1, 1 - 2 / math.pi), (2, 0, 1.5 + 4 / math.pi), (1, 1, 0.5)],
)
def test_log_e_value__matches_values_by_hand(won: int, lost: int, e: float) -> None:
    assert math.exp(log_e_value(won, lost)) == pytest.approx(e, rel=1e-6)


@pytest.mark.parametrize(("won", "lost"), COUNTS)
def test_log_e_value__is_the_documented_mixture(won: int, lost: int) -> None:
    closed = (won + lost + 1) * math.log(2) + betaln(won + 0.5, lost + 0.5) - betaln(0.5, 0.5)
    closed += math.log(betainc(lost + 0.5, won + 0.5, 0.5))
    assert log_e_value(won, lost) == pytest.approx(closed, abs=1e-6)
    assert log_e_value(won, lost, tied=100) == pytest.approx(closed, abs=1e-6)


@pytest.mark.parametrize("gain", [-0.5, -0.1, 0.2, 0.7])
def test_log_e_value__of_other_gains_matches_quadrature(gain: float) -> None:
    """9 won, 2 lost, 5 tied, in the order of the definition: a bet for each outcome."""

    def wealth(phi: float) -> float:
        bet = math.cos(phi) / (1.0 + gain)
        return math.prod(1.0 + bet * (x - gain) for x in [1] * 9 + [-1] * 2 + [0] * 5)

    expected = quad(wealth, 0.0, math.pi / 2)[0] / (math.pi / 2)
    assert log_e_value(9, 2, 5, gain) == pytest.approx(math.log(expected), abs=1e-6)


def test_shows_gain__needs_seven_wins_without_a_loss() -> None:
    """2^(w+1) B(w + 1/2, 1/2) / π · I_1/2(1/2, w + 1/2): 28.8 after six, and 53.5 after seven."""
    assert math.exp(log_e_value(6, 0)) == pytest.approx(28.8, abs=0.05)
    assert math.exp(log_e_value(7, 0)) == pytest.approx(53.5, abs=0.05)
    assert not shows_gain(6, 0)
    assert shows_gain(7, 0)
    assert not shows_gain(0, 7)


@functools.cache
def rejections() -> np.ndarray:
    """[101, 101] bool: whether a gain is shown after so many won and lost episodes."""
    return np.array([[w + n <= 100 and shows_gain(w, n) for n in range(101)] for w in range(101)])


@pytest.mark.parametrize(("win_rate", "tie_rate"), [(0.5, 0.0), (0.5, 0.6), (0.3, 0.2)])
def test_shows_gain__has_few_false_alarms_although_it_looks_after_every_episode(
    win_rate: float, tie_rate: float
) -> None:
    """Of 4,000 comparisons without a gain, at most 2.5 % reject at any of 100 episodes (3.5 % allow for four
    standard deviations). Ties and losses only delay them."""
    rng = np.random.default_rng(3)
    tied = rng.random((4000, 100)) < tie_rate
    won = ~tied & (rng.random((4000, 100)) < win_rate)
    lost = ~tied & ~won
    alarms = rejections()[won.cumsum(1), lost.cumsum(1)].any(1).mean()
    assert alarms <= ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / 4000)


@pytest.mark.slow
def test_gain_interval__covers_the_gain_at_every_episode_at_once() -> None:
    """A gain of 0.3 - 0.1 = 0.2, looked at after every twentieth of 200 episodes. Four standard deviations
    allow 11 % of 200 comparisons to miss it."""
    rng = np.random.default_rng(4)
    missed = 0
    for _ in range(200):
        draws = rng.random(200)
        won, lost = (draws < 0.3).cumsum(), (draws > 0.9).cumsum()
        looks = [(int(won[n]), int(lost[n]), int(n + 1 - won[n] - lost[n])) for n in range(19, 200, 20)]
        missed += any(not low <= 0.2 <= high for low, high in (gain_interval(*look) for look in looks))
    assert missed / 200 <= 0.11


@pytest.mark.parametrize(("won", "lost"), [(6, 0), (7, 0), (0, 7), (13, 4), (32, 10), (5, 5), (0, 0)])
def test_gain_interval__lies_above_zero_exactly_where_a_gain_is_shown(won: int, lost: int) -> None:
    low, high = gain_interval(won, lost, 40)
    assert (low > 0) == shows_gain(won, lost)
    assert (high < 0) == shows_gain(lost, won)
    assert low <= (won - lost) / (won + lost + 40) <= high
    assert gain_interval(lost, won, 40) == (-high, -low)


def test_gain_interval__has_the_ends_of_the_e_value() -> None:
    low, high = gain_interval(13, 4, 63)
    assert log_e_value(13, 4, 63, low) == pytest.approx(-math.log(ALPHA))
    assert log_e_value(4, 13, 63, -high) == pytest.approx(-math.log(ALPHA))
    assert gain_interval(0, 30, 0)[0] == -1.0
    assert gain_interval(30, 0, 0)[1] == 1.0


@pytest.mark.parametrize(
    ("won", "lost", "done", "total", "may"),
    [
        (0, 0, 0, 200, True),
        (0, 0, 0, 6, False),  # six wins do not suffice
        (0, 0, 0, 7, True),
        (0, 0, 195, 200, False),
        (0, 5, 40, 200, True),  # before a quarter of the episodes
        (0, 5, 50, 200, False),
        # In 150 others, won at the same rate: 9 ± 3, so 15 at most, and lost: 3 ± 1.7, so 2.3 at least.
        (3, 1, 50, 200, True),
        (1, 1, 50, 200, False),
    ],
)
def test_may_show_gain__is_false_where_the_rest_will_not_suffice(
    won: int, lost: int, done: int, total: int, may: bool
) -> None:
    assert may_show_gain(won, lost, done, total) is may
