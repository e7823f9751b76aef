"""Every numbered promise of the design has a test."""

from __future__ import annotations

import ast

import pytest
from paths import ROOT

PROMISES = range(1, 11)
"""Promises 11 and 12 are tested with their features."""


@pytest.mark.parametrize("number", PROMISES)
def test_promises__each_has_a_file_with_tests(number: int) -> None:
    (path,) = (ROOT / "tests" / "promises").glob(f"test_{number:02}_*.py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in tree.body)
    assert (ast.get_docstring(tree) or "").startswith(f"Promise {number}: ")
