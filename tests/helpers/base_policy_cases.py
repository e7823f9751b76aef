"""Settings of base policies that need a file or a server, for the contract tests."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CASES = {
    "gr00t": "remote_case:make_case_gr00t",
    "hybrid": "model_case:make_case_hybrid",
    "il": "il_case:make_case",
    "lerobot": "lerobot_case:make_case",
    "model": "model_case:make_case_model",
    "openpi": "remote_case:make_case_openpi",
    "python": "python_case:make_case",
}
"""Base policy -> `module:function` that makes its settings, given an empty folder."""
_NEEDS = {"lerobot": "lerobot"}
"""Base policy -> library without which its tests are skipped."""
_ELSEWHERE = {
    "expert": "tests/base_policies/test_expert_policy.py",
    "ik": "tests/base_policies/test_ik_contract.py",
}
"""Base policy -> file of its contract tests, if it does not support the envs of so101-paper."""


class ConfigOf:
    """The settings of a base policy in the contract tests: its defaults, or those of its case, made once."""

    def __init__(self, tmp_path_factory: pytest.TempPathFactory):
        self._folders: Callable[[], Path] = lambda: tmp_path_factory.mktemp("case")
        self._made: dict[str, Any] = {}

    def __call__(self, base_policy_id: str) -> Any:
        if base_policy_id in _ELSEWHERE:
            pytest.skip(f"tested in {_ELSEWHERE[base_policy_id]}")
        if base_policy_id not in CASES:
            return None
        if base_policy_id in _NEEDS:
            pytest.importorskip(
                _NEEDS[base_policy_id], reason="tested in another environment: make test-lerobot"
            )
        if base_policy_id not in self._made:
            module, _, function = CASES[base_policy_id].partition(":")
            self._made[base_policy_id] = getattr(importlib.import_module(module), function)(self._folders())
        return self._made[base_policy_id]


@pytest.fixture(scope="session")
def config_of(tmp_path_factory: pytest.TempPathFactory) -> ConfigOf:
    return ConfigOf(tmp_path_factory)
