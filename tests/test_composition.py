"""The composition: values worked out by hand, and properties for any values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from residual_rl.composition import compose, residual_penalty

SHAPE = (3, 4)


def arrays(bound: float) -> st.SearchStrategy[Tensor]:
    return hnp.arrays(np.float32, SHAPE, elements=st.floats(-bound, bound, width=32)).map(torch.from_numpy)


def test_compose__matches_values_worked_out_by_hand() -> None:
    base = torch.tensor([[0.5, -0.9, 0.25, 1.0]])
    residual = torch.tensor([[1.0, -0.5, -0.5, 1.0]])
    # 0.5 + 0.6; -0.9 - 0.3 clipped; 0.25 - 0.3; 1.0 + 0.6 clipped
    np.testing.assert_allclose(compose(base, residual, 0.6), [[1.0, -1.0, -0.05, 1.0]], atol=1e-7)
    np.testing.assert_allclose(compose(base, residual, 0.2), [[0.7, -1.0, 0.15, 1.0]], atol=1e-7)


def test_compose__accepts_a_scale_for_each_env_or_action() -> None:
    base, residual = torch.zeros(2, 3), torch.ones(2, 3)
    np.testing.assert_allclose(compose(base, residual, torch.tensor([[0.1], [0.2]])), [[0.1] * 3, [0.2] * 3])
    np.testing.assert_allclose(compose(base, residual, torch.tensor([0.1, 0.0, 0.3])), [[0.1, 0.0, 0.3]] * 2)


@given(arrays(1.0), arrays(1.0))
def test_compose__zero_scale_gives_the_base_action_bit_for_bit(base: Tensor, residual: Tensor) -> None:
    assert torch.equal(compose(base, residual, 0.0), base)


@given(arrays(1.0), st.floats(0.0, 2.0))
def test_compose__zero_residual_gives_the_base_action_bit_for_bit(base: Tensor, scale: float) -> None:
    assert torch.equal(compose(base, torch.zeros(SHAPE), scale), base)


@given(arrays(5.0), arrays(1.0), st.floats(0.0, 2.0))
def test_compose__bounds_the_action_and_its_distance_from_the_base(
    base: Tensor, residual: Tensor, scale: float
) -> None:
    action = compose(base, residual, scale)
    assert (action.abs() <= 1.0).all()
    assert ((action - base.clamp(-1, 1)).abs() <= scale + 1e-6).all()


@given(arrays(1.0), arrays(1.0))
def test_compose__does_not_modify_its_arguments(base: Tensor, residual: Tensor) -> None:
    copies = base.clone(), residual.clone()
    compose(base, residual, 0.6)
    residual_penalty(residual, 0.6, 0.001)
    assert torch.equal(base, copies[0])
    assert torch.equal(residual, copies[1])


def test_residual_penalty__matches_values_worked_out_by_hand() -> None:
    residual = torch.tensor([[0.5, -1.0], [0.0, 0.0]])
    # -0.001 · ((0.6 · 0.5)² + (0.6 · 1)²) = -0.001 · (0.09 + 0.36)
    assert residual_penalty(residual, 0.6, 0.001).tolist() == pytest.approx([-0.00045, 0.0])
    assert residual_penalty(residual, torch.tensor([1.0, 0.0]), 2.0).tolist() == pytest.approx([-0.5, 0.0])
    assert not residual_penalty(residual, 0.6, 0.0).any()
