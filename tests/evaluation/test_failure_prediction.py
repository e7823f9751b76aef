"""Cross-validated prediction of failures: it finds what can be known, and nothing where there is nothing."""

from __future__ import annotations

import pytest
import torch

from residual_rl.evaluation.failure_prediction import held_out_failure_logits
from residual_rl.utils.statistics import area_under_curve


def areas(informative: bool) -> float:
    """The area under the ROC curve at step 0 for 40 episodes of 3 to 6 steps, 16 of which fail.

    Each episode has a random constant in its observations, by which a network can recognise it. If
    `informative`, another entry tells failures from successes.
    """
    generator = torch.Generator().manual_seed(1)
    success = [i % 5 < 3 for i in range(40)]
    episodes = []
    for i, succeeds in enumerate(success):
        obs = torch.randn(1, 8, generator=generator).repeat(3 + i % 4, 1)
        if informative:
            obs[:, 0] = 1.0 if succeeds else -1.0
        episodes.append(obs)
    logits = held_out_failure_logits(episodes, success)
    assert [len(x) for x in logits] == [len(x) for x in episodes]
    first = [float(x[0]) for x in logits]
    failed = [x for x, succeeds in zip(first, success, strict=True) if not succeeds]
    return area_under_curve(failed, [x for x, s in zip(first, success, strict=True) if s]).mean


@pytest.mark.slow
def test_held_out_failure_logits__find_what_the_observations_show() -> None:
    assert areas(informative=True) > 0.95


@pytest.mark.slow
def test_held_out_failure_logits__do_not_recognise_episodes_that_were_held_out() -> None:
    """A network that had seen the episodes would reach 1.0, by their constants."""
    assert 0.25 < areas(informative=False) < 0.75


def test_held_out_failure_logits__are_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("residual_rl.evaluation.failure_prediction._STEPS", 5)
    episodes = [torch.full((2, 1), float(i)) for i in range(10)]
    success = [i < 5 for i in range(10)]
    first, second = (held_out_failure_logits(episodes, success) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
