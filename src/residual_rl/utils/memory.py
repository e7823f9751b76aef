"""Available memory of this process."""

from __future__ import annotations

from pathlib import Path


def free_memory(root: Path = Path("/")) -> int | None:
    """Memory that this process can still allocate [bytes].

    It is the available memory of the machine, or less if a container or scheduler limits it through control
    groups, version 2 (https://docs.kernel.org/admin-guide/cgroup-v2.html). File caches, which the kernel can
    drop, count as available.

    Args:
        root: folder that contains `proc` and `sys`; tests use another.

    Returns:
        None if the system does not provide these numbers.
    """
    try:
        machine = 1024 * _read_numbers(root / "proc/meminfo", ":")["MemAvailable"]
    except (OSError, KeyError):
        return None
    return min([machine, *_group_limits(root)])


def _group_limits(root: Path) -> list[int]:
    """Memory left in the control group of this process and in its parents, for those with a limit [bytes]."""
    top = root / "sys/fs/cgroup"
    try:
        mine = next(
            line[3:]
            for line in (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
            if line.startswith("0::")
        )
    except (OSError, StopIteration):
        return []
    group, left = top / mine.strip("/"), []
    for folder in (group, *group.parents):
        try:
            limit = (folder / "memory.max").read_text(encoding="utf-8", errors="replace").strip()
            if limit != "max":
                used = (
                    int((folder / "memory.current").read_text(encoding="utf-8", errors="replace"))
                    - _read_numbers(folder / "memory.stat", " ")["inactive_file"]
                )
                left.append(max(int(limit) - used, 0))
        except (OSError, KeyError, ValueError):
            pass  # the root group has no such files
        if folder == top:
            break
    return left


def _read_numbers(path: Path, separator: str) -> dict[str, int]:
    """The first number of each line, by the name in front of the separator."""
    rows = (line.split(separator, 1) for line in path.read_text(encoding="ascii").splitlines())
    return {name: int(value.split()[0]) for name, value in rows}
