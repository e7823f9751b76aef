"""Provenance of a run: command line, package versions, machine, and the state of the repository."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def command_line() -> list[str]:
    """The command line of this process, with the name of the program in place of its path."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def versions() -> dict[str, Any]:
    """Versions of Python and of all installed packages, and the machine."""
    packages = {d.name: d.version for d in metadata.distributions() if d.name}
    return {
        "python": platform.python_version(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
        "machine": machine(),
    }


def num_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """CPU model, number of cores available to this process, memory [bytes], platform, and `MUJOCO_GL`."""
    return {
        "cpu": _cpu_model(),
        "cores": num_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "platform": platform.platform(),
        "gl_backend": os.environ.get("MUJOCO_GL", "default"),
    }


def git_state(folder: Path | None = None) -> tuple[dict[str, Any] | None, str]:
    """The state of the git repository that contains `folder`, by default the folder of this package.

    Returns:
        `{"commit": hash or None, "dirty": whether there are changes}` and the changes as a diff. Untracked
        Python files of the package are part of the diff; other untracked files are listed by name. Without a
        repository: None, and a comment with the reason.
    """
    folder = folder or Path(__file__).parent.parent
    top, why = _git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        return None, f"# no git repository holds the package this run was started from ({why})\n"
    root = Path(top.strip())
    commit, _ = _git(root, "rev-parse", "--verify", "HEAD")
    # Before the first commit, compare with the empty tree, 4b825dc…, which exists in every repository.
    diff, why = _git(
        root,
        "diff",
        "--no-color",
        "--no-ext-diff",
        "HEAD" if commit else "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    )
    if diff is None:
        return None, f"# git cannot list the changes ({why})\n"
    # Add untracked files.
    unknown = (_git(root, "ls-files", "--others", "--exclude-standard", "-z")[0] or "").split("\0")[:-1]
    parts = [diff]
    for name in unknown:
        if name.endswith(".py") and (root / name).is_relative_to(folder.resolve()):
            parts.append(
                _git(root, "diff", "--no-color", "--no-ext-diff", "--no-index", "--", os.devnull, name)[0]
                or ""
            )
        else:
            parts.append(f"# not in git: {name}\n")
    text = "".join(parts)
    return {"commit": commit.strip() if commit else None, "dirty": bool(text)}, text


def _git(folder: Path, *arguments: str) -> tuple[str | None, str]:
    """Output of git, or None and the reason why it failed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    differs = done.returncode == 1 and "--no-index" in arguments
    if done.returncode and not differs:
        return None, (done.stderr.decode(errors="replace").strip().splitlines() or ["git failed"])[0]
    return done.stdout.decode(errors="replace"), ""


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next(
                (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")),
                platform.machine(),
            )
    except FileNotFoundError:
        return platform.processor() or platform.machine()
