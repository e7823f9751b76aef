"""Numbers of threads and worker processes where the user gives none."""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
"""CPU time of a container per period [µs], as "QUOTA PERIOD"; the quota is "max" without a limit."""


def num_cores() -> int:
    """Number of CPU cores that this process may use: its affinity, and at most the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA_FILE.read_text(encoding="utf-8").split()
        return max(min(cores, math.ceil(int(quota) / int(period))), 1)
    except (OSError, ValueError):  # another system, or no limit
        return cores


def simulator_threads() -> int:
    """Default number of simulator threads: OMP_NUM_THREADS if it is set, otherwise one per core."""
    return _omp_num_threads() or num_cores()


def network_threads() -> int:
    """Default number of threads of a network on the CPU: OMP_NUM_THREADS if it is set, otherwise half of the
    cores, at most 4. On a machine that others use too, threads that wait for each other cost more than they
    gain."""
    return _omp_num_threads() or max(min(num_cores() // 2, 4), 1)


def _omp_num_threads() -> int | None:
    """The value of OMP_NUM_THREADS, of a list the first; None if it is not set to a positive number."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None
