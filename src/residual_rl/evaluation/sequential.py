"""A paired test of success rates that is valid whenever it is stopped.

Two policies run the same episodes. An episode is won where only the first succeeds, lost where only the
second does, and tied otherwise. The wealth of a gambler who bets on the first policy, starting with 1, is an
e-value: with a true gain of at most `gain` (the first success rate minus the second), the probability that it
ever reaches 1/α is at most α (Ville's inequality), however often one looks at it. So a test may stop at any
episode, and an interval of all gains that are not rejected holds at every episode at once.

Sources: Ville 1939; Robbins 1970, "Statistical methods related to the law of the iterated logarithm"
(mixtures of likelihood ratios); Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by
betting"; Ramdas, Grünwald, Vovk & Shafer 2023, "Game-theoretic statistics and safe anytime-valid inference".
"""

from __future__ import annotations

import math

import numpy as np

ALPHA = 0.025
"""Level of the one-sided test, and of each end of the two-sided 95 % interval."""
_NODES = np.cos((np.arange(2000) + 0.5) * (0.5 * math.pi / 2000))
"""Bets cos φ in (0, 1) with φ uniform, so that `p = (1 + cos φ) / 2` has the density of Beta(1/2, 1/2) on
p > 1/2."""


def log_e_value(won: int, lost: int, tied: int = 0, gain: float = 0.0) -> float:
    """Logarithm of the e-value against the hypothesis that the true gain is at most `gain`, in (-1, 1].

    After each episode with outcome x (1 won, -1 lost, 0 tied) a bet λ multiplies the wealth by
    1 + λ (x - gain). The wealth is averaged over bets λ = cos φ / (1 + gain) with φ uniform in [0, π/2], by
    the midpoint rule. For gain 0, ties do not matter, and it is the mixture of likelihood ratios over the
    chance p > 1/2 of winning an episode that is not tied, with w = won, l = lost and the regularised
    incomplete beta function I:

        2^(w+l+1) · B(w + 1/2, l + 1/2) / B(1/2, 1/2) · I_1/2(l + 1/2, w + 1/2)
    """
    bets = _NODES / (1.0 + gain)
    logs = (
        won * np.log1p(bets * (1.0 - gain))
        + tied * np.log1p(-bets * gain)
        + lost * np.log1p(-_NODES)  # bets * (1 + gain)
    )
    largest = logs.max()
    return float(largest + np.log(np.exp(logs - largest).mean()))


def shows_gain(won: int, lost: int) -> bool:
    """Whether the first policy's success rate is significantly higher, at level `ALPHA` at any time."""
    return log_e_value(won, lost) >= -math.log(ALPHA)


def gain_interval(won: int, lost: int, tied: int) -> tuple[float, float]:
    """The two-sided 95 % interval of the gain. It lies above 0 exactly where `shows_gain`, up to rounding."""
    return _lower_end(won, lost, tied), -_lower_end(lost, won, tied)


def _lower_end(won: int, lost: int, tied: int) -> float:
    """The smallest gain that is not rejected; the e-value decreases with the gain."""
    from scipy.optimize import brentq

    def excess(gain: float) -> float:
        return log_e_value(won, lost, tied, gain) + math.log(ALPHA)

    lowest = -1.0 + 1e-9
    return -1.0 if excess(lowest) < 0.0 else float(brentq(excess, lowest, 1.0))


def may_show_gain(won: int, lost: int, done: int, total: int) -> bool:
    """Whether a gain may still be shown after `total` episodes, of which `done` have ended.

    False if winning all of the others would not suffice. From a quarter of the episodes on also if it would
    not suffice that the others go as the first ones did, with one standard deviation (of Poisson counts) more
    won and fewer lost. To stop then makes the test no less valid, since no gain is shown.
    """
    left = total - done
    if not shows_gain(won + left, lost):
        return False
    if 4 * done < total:
        return True
    more_won, more_lost = won * left / done, lost * left / done
    more_won = min(more_won + math.sqrt(more_won), left)
    more_lost = max(more_lost - math.sqrt(more_lost), 0.0)
    return shows_gain(round(won + more_won), round(lost + more_lost))
