"""Promise 2: the executed action is the one that the critic, the buffer, the logs and the video show."""

from __future__ import annotations

from typing import Any

import fakes
import pytest
import torch
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.composition import Composition
from residual_rl.residual_env import ResidualEnv

UNIT = torch.tensor([1.0, 0.5])


@pytest.mark.parametrize("unit", [None, UNIT], ids=["normalised", "with a unit"])
def test_residual_env__executes_what_the_transition_contains(unit: Tensor | None) -> None:
    executed: list[Tensor] = []

    class Env(fakes.PointEnv):
        def step(self, actions: Tensor, *arguments: Any) -> Any:
            executed.append(actions.clone())
            return super().step(actions, *arguments)

    vec_env = Env(fakes.PointCfg(), 3)
    env = ResidualEnv(vec_env, BasePolicyExecutor(fakes.Homing(), vec_env), Composition(0.6, unit=unit), 0.0)
    env.reset(seed=0)
    for step in range(12):
        residual = torch.sin(torch.arange(6.0).view(3, 2) + step)
        transition, info = env.step(residual)
        scale = 0.6 if unit is None else 0.6 * unit
        assert torch.equal(transition.action, executed[step])
        assert torch.equal(transition.action, (transition.base_action + scale * residual).clamp(-1.0, 1.0))
        assert torch.equal(torch.as_tensor(transition.effective_scale), torch.as_tensor(scale))
        assert info["residual_scale"] == 0.6


def test_composition__inverts_what_it_applies() -> None:
    composition = Composition(0.5, unit=UNIT)
    base, residual = torch.tensor([[0.2, -0.1]]), torch.tensor([[-0.8, 0.6]])
    action = composition.apply(base, residual, torch.zeros(1))
    assert action.tolist() == [pytest.approx([-0.2, 0.05])]
    assert composition.invert(base, action, torch.zeros(1)).tolist() == [pytest.approx([-0.8, 0.6])]
