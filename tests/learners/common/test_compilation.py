"""Compilation without a compiler, and CUDA graphs without their library or on other devices."""

from __future__ import annotations

import sys

import pytest
import torch

from residual_rl.errors import MissingDependencyError
from residual_rl.learners.common.compilation import compiled, cuda_graphed


def test_cuda_graphed__without_tensordict_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensordict", None)
    monkeypatch.setitem(sys.modules, "tensordict.nn", None)
    with pytest.raises(MissingDependencyError, match=r"tensordict.*pip install 'residual-rl\[cudagraphs\]'"):
        cuda_graphed(torch.sin, True, torch.device("cuda"), False)


def test_cuda_graphed__returns_the_eager_function_without_a_gpu() -> None:
    assert cuda_graphed(torch.sin, True, torch.device("cpu"), False) is torch.sin
    assert cuda_graphed(torch.sin, False, torch.device("cuda"), False) is torch.sin


def test_compiled__without_a_compiler_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingDependencyError, match=r"no-such-compiler is not available; .* --compile"):
        compiled(torch.sin, True)
    assert compiled(torch.sin, False) is torch.sin
