"""Moving averages of weights, against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from residual_rl.errors import CheckpointError
from residual_rl.learners.common.ema import MAX_DECAY, ActorEMA, soft_update


def test_actor_ema_update__matches_values_worked_out_by_hand() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    ema = ActorEMA(network, power=0.5)
    assert [ema.decay(step) for step in (0, 3, 10**12)] == [0.0, 0.5, MAX_DECAY]
    history = []
    for step, weight in enumerate((4.0, 8.0, 0.0, 2.0)):
        nn.init.constant_(network.weight, weight)
        ema.update(step)
        history.append(ema.weights["weight"].item())
    second = 4.0 + (8.0 - 4.0) / math.sqrt(2)  # decays are 1 − 1/√1, 1 − 1/√2, 1 − 1/√3, 1 − 1/√4
    third = second * (1 - 1 / math.sqrt(3))
    assert history == pytest.approx([4.0, second, third, third / 2 + 1.0])


def test_actor_ema_module__shares_the_averaged_weights() -> None:
    network = nn.Linear(1, 1, bias=False)
    ema = ActorEMA(network, power=0.5)
    before = network.weight.item()
    nn.init.constant_(network.weight, before + 3.0)
    ema.update(3)
    assert ema.module(torch.ones(1, 1)).item() == pytest.approx(before + 1.5)
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    assert network.weight.requires_grad


def test_actor_ema_restart__sets_the_average_to_the_weights() -> None:
    network = nn.Linear(2, 2)
    ema = ActorEMA(network, power=0.75)
    for step in range(3):
        nn.init.constant_(network.weight, float(step))
        ema.update(step)
    nn.init.constant_(network.weight, 7.0)
    ema.restart()
    assert (ema.weights["weight"] == 7.0).all()
    nn.init.constant_(network.weight, 9.0)
    ema.update(3)
    assert torch.allclose(ema.weights["weight"], torch.full((2, 2), 7.0 + 2.0 * 4.0**-0.75))


def test_actor_ema_state_dict__restores_the_average() -> None:
    ema, other = ActorEMA(nn.Linear(2, 2), 0.75), ActorEMA(nn.Linear(2, 2), 0.75)
    other.load_state_dict(ema.state_dict())
    assert all(torch.equal(other.weights[name], ema.weights[name]) for name in ema.weights)
    with pytest.raises(CheckpointError, match="other parameters: \\['bias'\\]"):
        ActorEMA(nn.Linear(2, 2, bias=False), 0.75).load_state_dict(ema.state_dict())


def test_soft_update__matches_values_worked_out_by_hand() -> None:
    target, source = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(target.weight, 2.0)
    nn.init.constant_(source.weight, 10.0)
    soft_update(target, source, tau=0.25)
    assert target.weight.item() == 4.0
