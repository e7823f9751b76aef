"""The processes of a sweep's trials: commands of `residual-rl` that exit with the process that started them.

    python -m residual_rl.cli.trial PARENT COMMAND…

runs a command of `residual-rl`. When the process PARENT ends for any reason, the command receives SIGTERM,
saves and exits.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from residual_rl.cli.main import main

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Make Linux send SIGTERM to this process when its parent process ends. No effect on other systems."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent ended before the call
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    sys.argv = ["residual-rl", *sys.argv[2:]]  # the run folder records the command line
    sys.exit(main())
