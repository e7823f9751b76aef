"""Filling a disk."""

from __future__ import annotations

import contextlib
from pathlib import Path


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
