"""Promise 7: envs pass the sanity suite, and a non-finite number is caught in the step where it appears."""

from __future__ import annotations

import fakes
import pytest
import torch

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.cli.main import main
from residual_rl.errors import NonFiniteError
from residual_rl.registry import BASE_POLICIES, register_base_policy
from residual_rl.residual_env import ResidualEnv
from residual_rl.sanity.suite import examine


@pytest.fixture(autouse=True)
def _homing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BASE_POLICIES, "_specs", dict(BASE_POLICIES._specs))
    register_base_policy(fakes.HOMING)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["so101-paper", "so101-paper-precise"])
def test_doctor__passes_for_the_tasks(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", task, "--quick"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("defect", ["", "dead term"])
def test_examine__passes_a_correct_env_and_fails_a_defective_one(defect: str) -> None:
    failed = [
        check.name
        for check in examine(fakes.POINT_TASK, fakes.PointCfg(defect=defect), quick=True)
        if not check.ok
    ]
    assert bool(failed) == bool(defect), failed


def test_residual_env__nan_is_an_error_in_its_step() -> None:
    vec_env = fakes.PointEnv(fakes.PointCfg(), 2)
    env = ResidualEnv(vec_env, BasePolicyExecutor(fakes.Homing(), vec_env), 0.5, 0.0)
    env.reset(seed=0)
    env.step(torch.zeros(2, 2))
    with pytest.raises(NonFiniteError, match="action is not finite"):
        env.step(torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]))
