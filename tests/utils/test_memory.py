"""Free memory of the machine, and limits of containers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from residual_rl.utils.memory import free_memory

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MACHINE = {
    "proc/meminfo": f"MemTotal:       99999999 kB\nMemAvailable:   {8 * GIB // 1024} kB\n",
    "proc/self/cgroup": "0::/job/step\n",
}


def group(name: str, limit: int | str, used: int, cached: int) -> dict[str, str]:
    folder = f"sys/fs/cgroup/{name}"
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 1\ninactive_file {cached}\n",
    }


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 8 * GIB),
        (group("job/step", "max", GIB, 0), 8 * GIB),
        (group("job/step", 4 * GIB, 2 * GIB, GIB), 3 * GIB),  # half of the used memory is cache
        (group("job/step", 64 * GIB, 0, 0), 8 * GIB),
        # a limit of the parent group
        (group("job", 3 * GIB, 2 * GIB, 0) | group("job/step", "max", GIB, 0), GIB),
        (group("job/step", GIB, 2 * GIB, 0), 0),
        (group("elsewhere", GIB, GIB, 0), 8 * GIB),
        ({"proc/self/cgroup": "4:memory:/old\n"}, 8 * GIB),
    ],
)
def test_free_memory__is_the_smallest_limit(files: dict[str, str], left: int, tmp_path: Path) -> None:
    write(tmp_path, {**MACHINE, **files})
    assert free_memory(tmp_path) == left


def test_free_memory__is_none_where_the_system_has_no_numbers(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not provide these numbers")
def test_free_memory__of_this_machine() -> None:
    assert 2**20 < (free_memory() or 0) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
