"""Ensembles of critics, against critics computed one by one, and the normalisation of their targets."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from residual_rl.errors import ConfigError
from residual_rl.learners.off_policy.critics import Critics, PopArt


def make(num: int = 3, layer_norm: bool = True, output_init: float = 1.0, seed: int = 0) -> Critics:
    return Critics(num, (5, 8, 6, 1), "relu", layer_norm, output_init, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_critics__equal_networks_computed_one_by_one(layer_norm: bool) -> None:
    critics, x = make(layer_norm=layer_norm), torch.randn(7, 5)
    with torch.no_grad():
        for p in critics.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    expected = []
    for i in range(3):
        h = x
        for weight, bias in zip(list(critics.weights)[:-1], list(critics.biases)[:-1], strict=True):
            h = h @ weight[i] + bias[i]
            if layer_norm:
                h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
            h = h.clamp(min=0.0)
        expected.append((h @ critics.weights[-1][i] + critics.biases[-1][i])[:, 0])
    torch.testing.assert_close(critics(x), torch.stack(expected))
    torch.testing.assert_close(critics(x, torch.tensor([2, 0])), torch.stack([expected[2], expected[0]]))


def test_critics__weights_are_orthogonal_and_independent_for_each_member() -> None:
    state = torch.get_rng_state()
    critics, same = make(), make()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(critics.parameters(), same.parameters(), strict=True))
    for weight in critics.weights[0]:
        torch.testing.assert_close(weight @ weight.T, 2.0 * torch.eye(5))
    assert not torch.equal(critics.weights[0][0], critics.weights[0][1])
    torch.testing.assert_close(critics.weights[-1].norm(dim=1).flatten(), torch.ones(3))
    assert not any(bias.any() for bias in critics.biases)
    assert not make(output_init=0.0).weights[-1].any()
    with pytest.raises(ConfigError, match="activation must be one of tanh, relu"):
        Critics(1, (2, 1), "gelu", False, 0.0, torch.Generator())


def test_critics__gradients_reach_every_member() -> None:
    critics, x = make(), torch.randn(7, 5)
    gradients = torch.autograd.grad(F.mse_loss(critics(x), torch.ones(3, 7)), list(critics.parameters()))
    assert all(gradient.flatten(1).any(1).all() for gradient in gradients)


def test_pop_art__disabled_changes_nothing() -> None:
    popart, critics = PopArt(enabled=False), make()
    before = critics.weights[-1].clone()
    popart.update(torch.tensor([100.0, 300.0]), critics)
    assert popart.to_value(torch.tensor(3.0)) == 3.0
    assert popart.to_output(torch.tensor(3.0)) == 3.0
    assert torch.equal(critics.weights[-1], before)


def test_pop_art_update__normalizes_targets_and_preserves_values() -> None:
    popart, critics, target_critics = PopArt(enabled=True), make(), make(seed=1)
    x = torch.randn(9, 5)
    before = [popart.to_value(c(x)) for c in (critics, target_critics)]
    popart.update(torch.tensor([1.0, 5.0]), critics, target_critics)
    assert (popart.mean.item(), popart.std.item()) == pytest.approx((3.0, 2.0))
    assert popart.to_output(torch.tensor([1.0, 5.0])).tolist() == pytest.approx([-1.0, 1.0])
    popart.update(torch.tensor([7.0, 7.0]), critics, target_critics)
    # both batches have equal weight: mean (3 + 7) / 2, mean square (13 + 49) / 2
    assert (popart.mean.item(), popart.std.item()) == pytest.approx((5.0, math.sqrt(31.0 - 25.0)))
    for ensemble, values in zip((critics, target_critics), before, strict=True):
        torch.testing.assert_close(popart.to_value(ensemble(x)), values)
    assert popart.to_value(popart.to_output(torch.tensor(4.0))).item() == pytest.approx(4.0)


def test_pop_art_update__equal_targets_do_not_divide_by_zero() -> None:
    popart, critics = PopArt(enabled=True), make()
    popart.update(torch.full((8,), 2.0), critics)
    assert popart.std.item() == pytest.approx(1e-3)
    assert torch.isfinite(critics(torch.randn(4, 5))).all()


def test_pop_art_update__ignores_nonfinite_targets() -> None:
    popart, critics = PopArt(enabled=True), make()
    popart.update(torch.tensor([1.0, 5.0]), critics)
    popart.update(torch.tensor([torch.nan, torch.inf]), critics)
    assert popart.mean.item() == pytest.approx(3.0)
    assert all(torch.isfinite(p).all() for p in critics.parameters())
