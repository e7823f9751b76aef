"""How much memory this process can still have."""

from __future__ import annotations

from pathlib import Path


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can still be had: of the machine, or of the limits of containers and schedulers where those leave less.

    Limits are those of control groups, version 2 (https://docs.kernel.org/admin-guide/cgroup-v2.html); file caches, which the kernel
    gives up when it has to, count as free in both.

    Args:
        root: of the file system that has `proc` and `sys`; another in tests.

    Returns:
        None where the system does not tell.
    """
    try:
        machine = 1024 * _figures(root / "proc/meminfo", ":")["MemAvailable"]
    except (OSError, KeyError):
        return None
    return min([machine, *_group_limits(root)])


def _group_limits(root: Path) -> list[int]:
    """What is left in the control group of this process and in those around it, where they have limits."""
    top = root / "sys/fs/cgroup"
    try:
        mine = next(line[3:] for line in (root / "proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    group, left = top / mine.strip("/"), []
    for folder in (group, *group.parents):
        try:
            limit = (folder / "memory.max").read_text().strip()
            if limit != "max":
                used = int((folder / "memory.current").read_text()) - _figures(folder / "memory.stat", " ")["inactive_file"]
                left.append(max(int(limit) - used, 0))
        except (OSError, KeyError, ValueError):
            pass  # the topmost group has no such files
        if folder == top:
            break
    return left


def _figures(path: Path, separator: str) -> dict[str, int]:
    """The first number of each line, by the name before the separator."""
    rows = (line.split(separator, 1) for line in path.read_text(encoding="ascii").splitlines())
    return {name: int(value.split()[0]) for name, value in rows}
