"""The standard streams of a process that was started without them."""

from __future__ import annotations

import os
import sys


def replace_closed_streams() -> None:
    """Open the null device in place of standard streams that are closed, as after `residual-rl … >&-`.

    Otherwise Python has no `sys.stdout`, and the next file to be opened would receive what libraries print.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
