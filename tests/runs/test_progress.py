"""Statistics over the most recent training episodes."""

from __future__ import annotations

import random

import pytest

from residual_rl.runs.progress import Progress


def run(progress: Progress, num_envs: int, decisions: int, seed: int = 0) -> list[float]:
    """Half of the episodes succeed after 5 decisions, the others fail after 20. The rate in each decision."""
    generator = random.Random(seed)
    lengths = [generator.choice([5, 20]) for _ in range(num_envs)]
    ages, rates = [0] * num_envs, []
    for _ in range(decisions):
        ages = [age + 1 for age in ages]
        ends = [age == length for age, length in zip(ages, lengths, strict=True)]
        won = [float(length == 5) for length in lengths]
        progress.add_episodes(ends, won, [-float(age) for age in ages], [float(age) for age in ages])
        for env_id in (i for i, end in enumerate(ends) if end):
            ages[env_id], lengths[env_id] = 0, generator.choice([5, 20])
        if progress.success:
            rates.append(sum(progress.success) / len(progress.success))
    return rates


def test_progress__success_rate_does_not_start_at_one() -> None:
    progress = Progress()
    rates = run(progress, num_envs=64, decisions=60)
    assert rates[0] == pytest.approx(0.5, abs=0.15)  # in the order of their ends: 1.0
    assert all(0.3 < rate < 0.7 for rate in rates)
    assert progress.success.maxlen == 100


def test_add_episodes__by_hand() -> None:
    """Env 0 ends after decisions 1, 2 and 3, env 1 after decision 3."""
    progress = Progress()
    progress.add_episodes([True, False], [1.0, 0.0], [10.0, 0.0], [1.0, 1.0])
    progress.add_episodes([True, False], [1.0, 0.0], [11.0, 0.0], [1.0, 2.0])
    assert (progress.episodes, list(progress.success)) == (0, [])
    progress.add_episodes([True, True], [1.0, 0.0], [12.0, -3.0], [1.0, 3.0])
    assert (progress.episodes, list(progress.success)) == (4, [1.0, 0.0, 1.0, 1.0])
    assert list(progress.returns) == [10.0, -3.0, 11.0, 12.0]
    assert list(progress.lengths) == [1.0, 3.0, 1.0, 1.0]
    assert progress.ended == []


def test_progress__restored_state_continues_alike() -> None:
    whole, first, second = Progress(), Progress(), Progress()
    run(whole, 8, 30)
    run(first, 8, 30)
    second.load_state_dict(first.state_dict())
    assert second == whole
    for progress in (whole, second):
        run(progress, 8, 40, seed=1)
    assert second == whole


def test_add_episodes__leaves_out_those_that_do_not_count_and_does_not_wait_for_them() -> None:
    progress = Progress()
    progress.add_episodes([True, False], [1.0, 0.0], [10.0, 0.0], [1.0, 1.0], counts=[False, True])
    progress.add_episodes([False, True], [0.0, 0.0], [0.0, 5.0], [1.0, 2.0], counts=[True, True])
    progress.add_episodes([True, False], [1.0, 0.0], [12.0, 0.0], [2.0, 1.0], counts=[True, True])
    progress.add_episodes([False, True], [1.0, 1.0], [0.0, 0.0], [2.0, 2.0], counts=[True, False])
    progress.add_episodes([True, True], [1.0, 1.0], [0.0, 0.0], [2.0, 2.0], counts=[False, False])
    assert list(progress.success) == [0.0, 1.0]
    assert list(progress.returns) == [5.0, 12.0]
    assert progress.episodes == 2
