"""Declares the two operators that a CUDA build of torchvision lacks beside a CPU build of torch, when torchvision is about to be imported.

`setup_lerobot.sh` puts it into `.venv-lerobot`, where a `.pth` file loads it at the start of Python. Nothing here calls the operators.
"""

from __future__ import annotations

import importlib.abc
import sys
from typing import Any

OPERATORS = ("nms", "qnms")
_kept: list[Any] = []
"""A declaration holds as long as its library object lives."""


class DeclareOperators(importlib.abc.MetaPathFinder):
    """Finds nothing; it only sees the import coming."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:  # noqa: ARG002
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)


sys.meta_path.insert(0, DeclareOperators())
