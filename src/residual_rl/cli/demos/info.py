"""`residual-rl demos info`: a summary of a file of demonstrations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from residual_rl.cli.demos.common import YES_NO, require_demos_file
from residual_rl.cli.flags import parse_flags, settings_as_flags
from residual_rl.demos.reader import Demonstrations
from residual_rl.utils.console import Console
from residual_rl.utils.text import printable


@dataclasses.dataclass(frozen=True)
class InfoFlags:
    """Flags of `demos info`."""

    episodes: bool = False
    """List every episode."""


def main(argv: Sequence[str]) -> int:
    """Print a summary of a file of demonstrations."""
    file, rest = require_demos_file(argv, "info", "Summarise a file of demonstrations")
    about = "Summarise a file of demonstrations."
    flags: InfoFlags = parse_flags({"own": InfoFlags()}, rest, f"demos info {file}", about)["own"]
    console = Console()
    with Demonstrations.open(file) as demos:
        # statistics over all episodes, without reading the observations
        parts = [demos.episode(i, obs=()) for i in range(len(demos))]
        info, lengths = demos.info, [len(part) for part in parts]
        known = [part.succeeded for part in parts if part.succeeded is not None]
        low = min(float(part.actions.min()) for part in parts)
        high = max(float(part.actions.max()) for part in parts)
        median = sorted(lengths)[len(lengths) // 2]
        success = (
            f"{sum(known)} of {len(known)} ({100 * sum(known) / len(known):.1f} %)" if known else "not stored"
        )
        # the rows of the table
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in demos.obs_shapes.items())
        rows = {"task": f"{demos.env_id} (as {demos.program} stores it)"}
        if demos.own:
            rows["settings"] = settings_as_flags(demos.task_id, demos.task_settings) or "defaults of the task"
        rows |= {
            "policy": str(info.get("source_desc") or info.get("source_type") or "unknown"),
            "episodes": f"{len(demos)}, {sum(lengths):,} steps",
            "success": success,
            "steps per episode": f"{min(lengths)} to {max(lengths)}, median {median}",
            "observations": shapes or "none",
            "actions": f"[{demos.action_dim}], from {low:.3g} to {high:.3g}",
            "also stored": ", ".join(name for name in _ALSO_STORED if _has(parts[0], name)) or "nothing",
            "noise": _noise_of(info),
            "size": f"{demos.num_bytes / 1e6:.1f} MB",
        }
        # print them, and on request a table of the episodes
        table = Table("", str(demos.path), show_lines=False)
        for name, value in rows.items():
            table.add_row(name, printable(value))  # names in the file may contain control characters
        console.print(table)
        if flags.episodes:
            console.print(_episode_table(demos, lengths, [part.succeeded for part in parts]))
    return 0


_ALSO_STORED = ("base_actions", "residual_actions", "intended_actions", "rewards", "draws", "env_states")


def _has(demo: Any, name: str) -> bool:
    value = getattr(demo, name)
    return value is not demo.actions and (bool(value) if isinstance(value, dict) else value is not None)


def _noise_of(info: dict[str, Any]) -> str:
    collected = info.get("collected") or {}
    if not collected.get("noise"):
        return "none" if collected else "unknown"
    return f"{collected['noise']:g}, correlation {collected['noise_correlation']:g}"


def _episode_table(demos: Demonstrations, lengths: list[int], success: list[bool | None]) -> Table:
    table = Table("episode", "seed", "steps", "success")
    for i, (entry, steps, solved) in enumerate(zip(demos.episodes, lengths, success, strict=True)):
        seed = entry.get("episode_seed")
        table.add_row(str(i), "–" if seed is None else str(seed), str(steps), YES_NO[solved])
    return table
