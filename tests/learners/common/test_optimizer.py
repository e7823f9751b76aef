"""FlatAdam, against the optimisers and gradient clipping of torch."""

from __future__ import annotations

import copy

import pytest
import torch

from residual_rl.errors import CheckpointError, NonFiniteError
from residual_rl.learners.common.optimizer import FlatAdam


def module() -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    for p in net.parameters():
        torch.nn.init.normal_(p, generator=generator)
    return net


def loss(net: torch.nn.Module, scale: float = 1.0) -> torch.Tensor:
    x = torch.linspace(-1.0, 1.0, 12).view(4, 3)
    return scale * net(x).square().sum()


def flat(net: torch.nn.Module, max_grad_norm: float = 0.5) -> FlatAdam:
    return FlatAdam(net.named_parameters(), learning_rate=1e-2, max_grad_norm=max_grad_norm)


@pytest.mark.parametrize("max_grad_norm", [0.5, 1e6])
def test_flat_adam__steps_equal_torchs_adam_with_gradient_clipping(max_grad_norm: float) -> None:
    ours, theirs = module(), module()
    optimizer, reference = flat(ours, max_grad_norm), torch.optim.Adam(theirs.parameters(), lr=1e-2, eps=1e-5)
    for i in range(10):
        learning_rate = 1e-2 * (1.0 - i / 20)
        optimizer.learning_rate.fill_(learning_rate)
        optimizer.step(torch.autograd.grad(loss(ours), optimizer.parameters))
        reference.param_groups[0]["lr"] = learning_rate
        reference.zero_grad()
        loss(theirs).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm)
        reference.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert loss(ours) < loss(module())


def test_flat_adam__weight_decay_matches_values_worked_out_by_hand() -> None:
    """2 · (1 − 0.1 · 0.5) = 1.9; the first step of Adam has the size of the learning rate, 0.1."""
    p = torch.nn.Parameter(torch.tensor([2.0, -4.0]))
    optimizer = FlatAdam([("p", p)], learning_rate=0.1, max_grad_norm=1e6, epsilon=1e-8, weight_decay=0.5)
    optimizer.step([torch.tensor([3.0, 0.5])])
    assert p.tolist() == pytest.approx([1.9 - 0.1, -3.8 - 0.1])
    # (1 − 0.9) · gradient, without the weight decay
    assert optimizer.state_dict()["exp_avg"]["p"].tolist() == pytest.approx([0.3, 0.05])
    optimizer.step([torch.tensor([torch.nan, 0.5])])
    assert p.tolist() == pytest.approx([1.8, -3.9])  # a skipped step has no weight decay


def test_flat_adam__weight_decay_equals_torchs_adamw() -> None:
    ours, theirs = module(), module()
    optimizer = FlatAdam(ours.named_parameters(), 1e-2, 0.5, weight_decay=0.3)
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-2, eps=1e-5, weight_decay=0.3)
    for _ in range(10):
        optimizer.step(torch.autograd.grad(loss(ours), optimizer.parameters))
        reference.zero_grad()
        loss(theirs).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        reference.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_flat_adam__names_a_nonfinite_gradient_and_keeps_weights_and_moments() -> None:
    net = module()
    optimizer = flat(net)
    optimizer.step(torch.autograd.grad(loss(net), optimizer.parameters))
    optimizer.raise_if_nonfinite()
    weights, state = copy.deepcopy(net.state_dict()), optimizer.state_dict()
    gradients = list(torch.autograd.grad(loss(net), optimizer.parameters))
    gradients[1] = torch.full_like(gradients[1], torch.nan)
    optimizer.step(gradients)
    # on a GPU, finite gradients may follow before the check
    optimizer.step(torch.autograd.grad(loss(net), optimizer.parameters))
    with pytest.raises(NonFiniteError, match=r"the gradient of 0\.bias is not finite"):
        optimizer.raise_if_nonfinite()
    assert all(torch.equal(weights[name], tensor) for name, tensor in net.state_dict().items())
    after = optimizer.state_dict()
    assert after["step"].item() == state["step"].item() == 1.0
    assert all(
        torch.equal(after[m][name], state[m][name]) for m in ("exp_avg", "exp_avg_sq") for name in state[m]
    )


def test_raise_if_nonfinite__refuses_a_norm_that_overflows() -> None:
    net = module()
    optimizer = flat(net)
    optimizer.step([torch.full_like(p, 1e30) for p in optimizer.parameters])
    with pytest.raises(NonFiniteError, match="norm"):
        optimizer.raise_if_nonfinite()


def test_flat_adam__restored_state_continues_bit_for_bit() -> None:
    first, second = module(), module()
    one, two = flat(first), flat(second)
    for _ in range(3):
        one.step(torch.autograd.grad(loss(first), one.parameters))
    second.load_state_dict(first.state_dict())
    two.load_state_dict(one.state_dict())
    for net, optimizer in ((first, one), (second, two)):
        for _ in range(3):
            optimizer.step(torch.autograd.grad(loss(net), optimizer.parameters))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_flat_adam_load_state_dict__refuses_other_parameters() -> None:
    with pytest.raises(CheckpointError, match="other parameters"):
        flat(module()).load_state_dict(flat(torch.nn.Linear(3, 5)).state_dict())
