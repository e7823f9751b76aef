"""A check before training that the checkpoints and the replay buffer will fit on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from residual_rl.errors import ConfigError

GIB = 2**30


def state_bytes(state: Any) -> int:
    """Size of the tensors in a state [bytes], without its segments."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, dict | list):
        return sum(map(state_bytes, state.values() if isinstance(state, dict) else state))
    return 0


def check_room(folder: Path, checkpoints: int, replay: int, written: Iterable[Path] = ()) -> None:
    """Check that there is room for the checkpoints and the replay buffer of a run.

    Args:
        folder: the run folder, which need not exist yet.
        checkpoints: size of all kept checkpoints [bytes].
        replay: size of the replay buffer's segments [bytes].
        written: folders with files of this run, whose sizes are subtracted.

    Raises:
        ConfigError: the disk has too little space.
    """
    there = sum(file.stat().st_size for part in written for file in part.glob("*.safetensors"))
    exists = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    needed, disk = max(checkpoints + replay - there, 0), shutil.disk_usage(exists)
    if disk.total and needed > disk.free:  # virtual file systems such as /proc have size 0
        use = f"checkpoints ({checkpoints / GIB:.2f} GiB)" + (
            f" and replay buffer ({replay / GIB:.2f} GiB)" if replay else ""
        )
        raise ConfigError(
            f"the disk of {folder} has {disk.free / GIB:.2f} GiB free, and this run's {use} will take up to "
            f"{needed / GIB:.2f} GiB more: free some space, or choose another --output-dir"
            + (", a smaller --buffer-size" if replay else "")
            + " or fewer --keep-checkpoints"
        )
