"""Promise 9: every registered env and base policy passes the same contract tests."""

from __future__ import annotations

import base_policy_cases
import base_policy_contract
import env_contract
import pytest
from paths import ROOT

from residual_rl.registry import BASE_POLICIES, TASKS


def test_env_contract__runs_on_every_task() -> None:
    tested = {spec.id for spec in env_contract.SPECS if spec not in env_contract.VARIANTS}
    elsewhere = env_contract.ELSEWHERE
    assert {spec.id for spec in TASKS.all()} == (tested | elsewhere.keys()) - {"point"}
    assert all((ROOT / path).is_file() for path in elsewhere.values())


def test_base_policy_contract__runs_on_every_base_policy() -> None:
    tested = set(base_policy_contract.contract.args[1])
    assert {spec.id for spec in BASE_POLICIES.all()} == tested
    assert all((ROOT / path).is_file() for path in base_policy_cases._ELSEWHERE.values())


@pytest.mark.parametrize("module", [env_contract, base_policy_contract], ids=lambda module: module.__name__)
def test_contract__has_tests(module: object) -> None:
    assert sum(name.startswith("test_") for name in vars(module)) >= 10
