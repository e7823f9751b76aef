"""Whether a run's checkpoints fit on the disk: said before it starts, not when the disk is full."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

GIB = 2**30
_log = logging.getLogger(__name__)


def state_bytes(state: Any) -> int:
    """Bytes of a state's tensors [bytes], without its segments."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, dict | list):
        return sum(map(state_bytes, state.values() if isinstance(state, dict) else state))
    return 0


def warn_if_short(folder: Path, checkpoints: int, replay: int, written: Iterable[Path] = ()) -> None:
    """Warn where `checkpoints` and `replay` [bytes], less what is in the folders `written` already, do not fit on the disk of `folder`."""
    there = sum(file.stat().st_size for part in written for file in part.glob("*.safetensors"))
    needed, free = max(checkpoints + replay - there, 0), shutil.disk_usage(folder).free
    if needed > free:
        what = f"checkpoints ({checkpoints / GIB:.2f} GiB)" + (f" and replay buffer ({replay / GIB:.2f} GiB)" if replay else "")
        mend = (
            "free some space, or choose another --output-dir"
            + (", a smaller --buffer-size" if replay else "")
            + " or fewer --keep-checkpoints"
        )
        _log.warning(
            "%s has %.2f GiB free, and this run's %s will take up to %.2f GiB more: training would end when the disk is full; %s",
            folder, free / GIB, what, needed / GIB, mend,
        )  # fmt: skip
