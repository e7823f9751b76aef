"""CUDA graphs without the library that records them, and on other devices."""

from __future__ import annotations

import sys

import pytest
import torch

from residual_rl.errors import MissingDependencyError
from residual_rl.learners.common.compilation import cuda_graphed


def test_cuda_graphed__without_tensordict_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensordict", None)
    monkeypatch.setitem(sys.modules, "tensordict.nn", None)
    with pytest.raises(MissingDependencyError, match=r"tensordict.*pip install 'residual-rl\[cudagraphs\]'"):
        cuda_graphed(torch.sin, True, torch.device("cuda"), False)


def test_cuda_graphed__returns_the_eager_function_without_a_gpu() -> None:
    assert cuda_graphed(torch.sin, True, torch.device("cpu"), False) is torch.sin
    assert cuda_graphed(torch.sin, False, torch.device("cuda"), False) is torch.sin
