"""Noise as a function of the observations: normal, sensitive to every bit, independent of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from splitmix64_reference import reference_splitmix64

from residual_rl.utils.seeding import noise_of

WORD = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    """SplitMix64's output function, in Python's unbounded integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def reference_noise(row: list[float], seed: int, count: int) -> list[float]:
    words = np.array(row, np.float32).view(np.int32).tolist()
    key = mix((sum(mix((word + (i + 1) * GAMMA) & WORD) for i, word in enumerate(words)) + len(words)) & WORD)
    start = mix((mix(key) + seed * GAMMA) & WORD)
    half = (count + 1) // 2
    u = [(z >> 11) * 2.0**-53 for z in reference_splitmix64(start, 2 * half)]
    radius, angle = [np.sqrt(-2.0 * np.log(1.0 - v)) for v in u[:half]], [2.0 * np.pi * v for v in u[half:]]
    cosines = [r * np.cos(a) for r, a in zip(radius, angle, strict=True)]
    sines = [r * np.sin(a) for r, a in zip(radius, angle, strict=True)]
    return [*cosines, *sines][:count]


@pytest.mark.parametrize("seed", [0, 1, 5 + (3 << 32)])
@pytest.mark.parametrize("row", [[0.0], [1.5, -2.0, 3e-9], [float(i) for i in range(40)]])
def test_noise_of__matches_unbounded_integer_arithmetic(row: list[float], seed: int) -> None:
    drawn = noise_of(torch.tensor([row]), seed, (5,))
    assert drawn.dtype == torch.float64
    np.testing.assert_allclose(drawn[0].numpy(), reference_noise(row, seed, 5), rtol=1e-12)


def test_noise_of__keeps_its_known_values() -> None:
    """A change of these values would change every sampled action of a policy."""
    drawn = noise_of(torch.tensor([[0.25, -1.0]]), 7, (2, 2))
    known = [[2.6950036891690257, -0.5660220145337816], [0.30726457383802097, 0.8851601312412373]]
    torch.testing.assert_close(drawn, torch.tensor([known], dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_noise_of__is_standard_normal() -> None:
    drawn = noise_of(torch.randn(4000, 3), 0, (5, 2)).flatten(1).numpy()
    assert scipy.stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
    assert abs(drawn.mean()) < 4 / np.sqrt(drawn.size)
    assert abs(drawn.var() - 1.0) < 4 * np.sqrt(2 / drawn.size)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(10)).max() < 5 / np.sqrt(4000)


def test_noise_of__neighbouring_rows_and_seeds_are_uncorrelated() -> None:
    row = torch.linspace(0.0, 1.0, 2000)[:, None]
    by_row, next_seed = noise_of(row, 0, (1,))[:, 0].numpy(), noise_of(row, 1, (1,))[:, 0].numpy()
    assert abs(np.corrcoef(by_row[:-1], by_row[1:])[0, 1]) < 5 / np.sqrt(2000)
    assert abs(np.corrcoef(by_row, next_seed)[0, 1]) < 5 / np.sqrt(2000)


def test_noise_of__a_change_of_one_bit_changes_all_values() -> None:
    row = torch.randn(1, 2, 6)
    before = noise_of(row, 0, (8,))
    for place in range(12):
        other = row.clone().flatten(1)
        other[0, place] = torch.nextafter(other[0, place], torch.tensor(9.0))
        assert (noise_of(other.unflatten(1, (2, 6)), 0, (8,)) != before).all()
    assert not torch.equal(noise_of(row.flip(1), 0, (8,)), before)  # the order of the window counts


def test_noise_of__does_not_depend_on_the_batch() -> None:
    rows = torch.randn(33, 2, 25)
    together = noise_of(rows, 4, (16, 6))
    for size in (1, 2, 3, 5, 32):
        apart = torch.cat([noise_of(part, 4, (16, 6)) for part in rows.split(size)])
        assert torch.equal(apart, together)


def test_noise_of__negative_zero_counts_as_zero() -> None:
    assert torch.equal(
        noise_of(torch.tensor([[0.0, 1.0]]), 0, (3,)), noise_of(torch.tensor([[-0.0, 1.0]]), 0, (3,))
    )


def test_noise_of__accepts_observations_by_name_in_any_order() -> None:
    state, image = torch.randn(3, 4), torch.randint(256, (3, 8, 8, 3), dtype=torch.uint8)
    both = noise_of({"state": state, "image": image}, 0, (6,))
    assert torch.equal(both, noise_of({"image": image, "state": state}, 0, (6,)))
    other = image.clone()
    other[1, 7, 7, 2] ^= 1
    changed = noise_of({"state": state, "image": other}, 0, (6,))
    assert torch.equal(changed[[0, 2]], both[[0, 2]])
    assert (changed[1] != both[1]).all()
