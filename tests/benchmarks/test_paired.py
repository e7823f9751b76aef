"""Paired tests of success rates, against values worked out by hand."""

from __future__ import annotations

import pytest

from paired import holm, p_worse, won_and_lost


def test_won_and_lost__counts_episodes_that_one_of_two_solves() -> None:
    assert won_and_lost([1, 1, 0, 0, 1], [1, 0, 1, 1, 0]) == (2, 2)


def test_won_and_lost__compares_the_first_episodes() -> None:
    assert won_and_lost([1, 0], [0, 1, 0, 0]) == (1, 1)


@pytest.mark.parametrize(
    ("won", "lost", "expected"),
    [
        (0, 0, 1.0),
        (0, 5, 1 / 32),
        (1, 5, 7 / 64),  # (1 + 6) of the 2^6 outcomes have at most one win
        (5, 1, 63 / 64),  # all but one
        (3, 3, 42 / 64),  # (1 + 6 + 15 + 20)
    ],
)
def test_p_worse__is_the_lower_tail_of_fair_coins(won: int, lost: int, expected: float) -> None:
    assert p_worse(won, lost) == pytest.approx(expected)


def test_holm__multiplies_by_the_number_of_hypotheses_left() -> None:
    # 4 · 0.005, 3 · 0.01, 2 · 0.03, and 1 · 0.04, which must not be smaller than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm__is_at_most_one_and_leaves_a_single_value() -> None:
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_holm__ties_have_equal_values() -> None:
    assert holm([0.02, 0.02, 0.02]) == pytest.approx([0.06, 0.06, 0.06])
