"""Tests of whether a policy is worse than another one on the same episodes."""

from __future__ import annotations

from collections.abc import Sequence

from residual_rl.utils import statistics


def won_and_lost(policy: Sequence[float], base: Sequence[float]) -> tuple[int, int]:
    """Numbers of episodes that only `policy` and only `base` succeed in.

    If one of the two has more episodes, the first ones are compared.
    """
    return statistics.won_and_lost(zip(policy, base, strict=False))


def p_worse(won: int, lost: int) -> float:
    """p-value of the hypothesis that a policy is no worse than another one, against which it has won and
    lost these numbers of episodes.

    The exact test of McNemar (1947), one-sided: without a difference, each episode in which only one of the
    two succeeds is won with a probability of 1/2. Without such an episode it is 1.
    """
    from scipy.stats import binomtest

    return float(binomtest(won, won + lost, alternative="less").pvalue) if won + lost else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the same order: where they are at most α, the hypotheses are
    rejected, and the probability of any false rejection is at most α.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
