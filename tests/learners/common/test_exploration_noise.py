"""Exploration noise that is correlated in time."""

from __future__ import annotations

import pytest
import torch

from residual_rl.learners.common.exploration_noise import CorrelatedNoise
from residual_rl.utils.module_state import load_module_state, module_state

CPU = torch.device("cpu")


def draw(noise: CorrelatedNoise, steps: int) -> torch.Tensor:
    return torch.stack([noise.sample().value for _ in range(steps)])


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_correlated_noise__has_unit_variance_and_the_given_correlation(rho: float) -> None:
    samples = draw(CorrelatedNoise(20_000, 1, rho, 0, CPU), 4)[..., 0]
    # the standard error of a correlation is 0.007
    torch.testing.assert_close(samples.var(1), torch.ones(4), rtol=0.0, atol=0.04)
    correlation = torch.corrcoef(samples)
    assert correlation[0, 1].item() == pytest.approx(rho, abs=0.03)
    assert correlation[0, 3].item() == pytest.approx(rho**3, abs=0.03)


def test_correlated_noise_sample__shift_and_spread_match_values_worked_out_by_hand() -> None:
    noise = CorrelatedNoise(3, 2, 0.8, 0, CPU)
    first = noise.sample()
    assert first.shift.tolist() == [[0.0, 0.0]] * 3
    assert first.spread.tolist() == [[1.0]] * 3
    second = noise.sample()
    torch.testing.assert_close(second.shift, 0.8 * first.value)
    torch.testing.assert_close(second.spread, torch.full((3, 1), 0.6))


def test_correlated_noise_restart__env_whose_episode_ended_is_independent_of_earlier_noise() -> None:
    noise = CorrelatedNoise(3, 2, 0.8, 0, CPU)
    first = noise.sample()
    noise.restart(torch.tensor([False, True, False]))
    second = noise.sample()
    assert second.shift[1].tolist() == [0.0, 0.0]
    assert second.spread.flatten().tolist() == pytest.approx([0.6, 1.0, 0.6])
    torch.testing.assert_close(second.shift[::2], 0.8 * first.value[::2])
    torch.testing.assert_close(noise.sample().spread, torch.full((3, 1), 0.6))


def test_correlated_noise__without_correlation_equals_the_generators_samples() -> None:
    expected = torch.randn(4, 2, generator=torch.Generator().manual_seed(5))
    draw = CorrelatedNoise(4, 2, 0.0, 5, CPU).sample()
    assert torch.equal(draw.value, expected)
    assert not draw.shift.any()
    assert torch.equal(draw.spread, torch.ones(4, 1))


def test_correlated_noise__restored_state_continues_identically() -> None:
    first, second = CorrelatedNoise(4, 2, 0.9, 0, CPU), CorrelatedNoise(4, 2, 0.9, 1, CPU)
    draw(first, 3)
    first.restart(torch.tensor([True, False, False, False]))
    load_module_state(second, module_state(first), "noise")
    second.generator.set_state(first.generator.get_state())
    assert torch.equal(draw(first, 3), draw(second, 3))
