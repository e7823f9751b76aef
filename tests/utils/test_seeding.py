"""Seeds and counter-based random numbers, against the published generator and statistics."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from splitmix64_reference import reference_splitmix64

from residual_rl.envs.vec_env import EpisodeSeeds
from residual_rl.errors import ConfigError
from residual_rl.utils.seeding import (
    EVAL_SEED,
    TRAINING_EVAL_SEED,
    simulator_seeds,
    splitmix64,
    training_seed_start,
    uniform,
)

INT64 = st.integers(-(2**63), 2**63 - 1)


def unsigned(values: torch.Tensor) -> list[int]:
    return [int(v) & ((1 << 64) - 1) for v in values.flatten().tolist()]


def test_splitmix64__gives_the_published_numbers() -> None:
    # for seed 1234567, as published with many implementations
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert unsigned(splitmix64(torch.tensor([1234567]), 5)) == published
    assert reference_splitmix64(1234567, 5) == published


@given(st.lists(INT64, min_size=1, max_size=4))
def test_splitmix64__agrees_with_a_reference_for_any_seed(seeds: list[int]) -> None:
    expected = [number for seed in seeds for number in reference_splitmix64(seed, 3)]
    assert unsigned(splitmix64(torch.tensor(seeds), 3)) == expected


@given(st.lists(INT64, min_size=1, max_size=4), st.integers(0, 100), st.integers(1, 6))
def test_uniform__depends_on_seed_and_stream_alone(seeds: list[int], stream: int, n: int) -> None:
    drawn = uniform(torch.tensor(seeds), stream, n)
    assert drawn.shape == (len(seeds), n)
    assert drawn.dtype == torch.float64
    assert ((drawn >= 0) & (drawn < 1)).all()
    for i, seed in enumerate(seeds):
        # The first n numbers do not depend on the length.
        alone = uniform(torch.tensor([seed]), stream, n + 2)
        assert torch.equal(drawn[i], alone[0, :n])


def test_uniform__neighbouring_seeds_and_streams_are_unrelated() -> None:
    n = 10_000
    seeds = torch.arange(n)
    by_stream = np.concatenate([uniform(seeds, stream, 2).numpy() for stream in range(3)], 1)
    assert np.abs(np.corrcoef(by_stream.T) - np.eye(6)).max() < 0.045  # standard deviation 1/√n = 0.01
    for lag in (1, 2, 32):
        assert abs(np.corrcoef(by_stream[:-lag, 0], by_stream[lag:, 0])[0, 1]) < 0.045
    for column in by_stream.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-4
    assert len(np.unique(by_stream)) == by_stream.size
    # Draws of a seed are not a shifted copy of those of its neighbour: counters start at mixed values.
    long = uniform(torch.arange(2), 0, 1000).numpy()
    assert not np.intersect1d(long[0], long[1]).size


def test_training_seed_start__ranges_of_training_and_evaluations_are_disjoint() -> None:
    starts = [training_seed_start(seed) for seed in (0, 1, 2, (1 << 22) - 1)]
    assert len(set(np.diff(starts[:3]))) == 1
    assert np.diff(starts[:3])[0] == 1 << 36
    assert starts[-1] + (1 << 36) < 2**63  # an int64 holds the last episode of the last run
    assert EVAL_SEED < TRAINING_EVAL_SEED < starts[0]
    assert TRAINING_EVAL_SEED - EVAL_SEED >= 10_000_000


@pytest.mark.parametrize("seed", [-1, 1 << 22])
def test_training_seed_start__refuses_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"seed must be from 0 to 4194303, not {seed}"):
        training_seed_start(seed)


def test_episode_seeds__count_or_run_out() -> None:
    seeds = EpisodeSeeds(5)
    assert seeds.draw(2).tolist() == [5, 6]
    assert seeds.draw(1).tolist() == [7]
    seeds.use_list([30, 10, 20])
    assert seeds.draw(2).tolist() == [30, 10]
    assert seeds.draw(3).tolist() == [20, -1, -1]
    assert seeds.draw(1).tolist() == [-1]
    seeds.use_counter(100)
    assert seeds.draw(2).tolist() == [100, 101]
    assert seeds.draw(0).tolist() == []
    assert seeds.draw(1).dtype == torch.int64


@pytest.mark.parametrize("as_list", [True, False])
def test_episode_seeds__are_resumed(as_list: bool) -> None:
    seeds, other = EpisodeSeeds(5), EpisodeSeeds()
    if as_list:
        seeds.use_list([3, 1, 4, 1])
    seeds.draw(2)
    state = seeds.state_dict()
    expected = seeds.draw(3).tolist()
    other.load_state_dict(state)
    assert other.draw(3).tolist() == expected == ([4, 1, -1] if as_list else [7, 8, 9])
    assert state["queue"] == ([4, 1] if as_list else None)  # the saved state is unchanged


def test_simulator_seeds__fit_into_31_bits_and_keep_small_seeds() -> None:
    seeds = torch.tensor([0, 7, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 40) + 1, (1 << 40) + (1 << 36)])
    given = simulator_seeds(seeds)
    assert given[:3].tolist() == seeds[:3].tolist()
    assert (given >= 0).all()
    assert (given < 1 << 31).all()
    assert len(set(given.tolist())) == len(seeds)
