"""Declare the two operators that a CUDA build of torchvision lacks with a CPU build of torch.

They are declared just before torchvision is imported; nothing in this project calls them. `setup_lerobot.sh`
copies this file to `.venv-lerobot`, where a `.pth` file loads it when Python starts.
"""

from __future__ import annotations

import importlib.abc
import sys
from typing import Any

OPERATORS = ("nms", "qnms")
_kept: list[Any] = []
"""Keeps the library objects alive, and with them the declarations."""


class DeclareOperators(importlib.abc.MetaPathFinder):
    """An import hook that finds no module, but declares the operators when torchvision is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:  # noqa: ARG002
        """Declare the operators before the first import of torchvision."""
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)


sys.meta_path.insert(0, DeclareOperators())
