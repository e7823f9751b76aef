"""What `eval.json` holds: reading it, the words for its metrics, and its table for the terminal.

- `format_version` (1), `task`, `settings`, `episode_seeds` [int, …], and if wanted `units` {metric: "m"}
- `policies` {"residual": {metric: {"mean": x, "interval": [low, high] or null, "per_episode": {seed: value}}}, "base": …, "zero": …}
- `paired` {"residual-base": {metric: {"mean": x, "interval": [low, high] or null}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from residual_rl.errors import CheckpointError

FORMAT_VERSION = 1
PAIR = "residual-base"


def read_evaluation(path: Path | str) -> dict[str, Any]:
    """The evaluation in `path`. Raises `CheckpointError` naming the file when it is missing, damaged or foreign."""
    path = Path(path)
    mend = f"make it with `residual-rl eval {path.parent}`"
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; {mend}") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as an evaluation ({error}); {mend}") from error
    version = evaluation.get("format_version") if isinstance(evaluation, dict) else None
    if version != FORMAT_VERSION or not isinstance(evaluation.get("policies"), dict):
        raise CheckpointError(f"{path} is no evaluation of format version {FORMAT_VERSION}; {mend}")
    return evaluation


def policies_of(evaluation: Mapping[str, Any]) -> list[str]:
    """The policies' names: residual, base, zero, then others."""
    order = ["residual", "base", "zero"]
    return sorted(evaluation["policies"], key=lambda name: (order.index(name) if name in order else len(order), name))


def metrics_of(evaluation: Mapping[str, Any]) -> list[str]:
    """The metrics' names: success, return and length first, then the task's own as they come."""
    names = dict.fromkeys(metric for policy in policies_of(evaluation) for metric in evaluation["policies"][policy])
    return [m for m in LABELS if m in names] + [m for m in names if m not in LABELS]


def is_rate(metric: str) -> bool:
    """Whether `metric` is a share of episodes, shown in percent."""
    return metric.startswith("success")


LABELS = {
    "success_once": "Success (once)",
    "success_at_end": "Success (at the end)",
    "return": "Return",
    "episode_length": "Episode length",
}


UNITS = {"episode_length": "steps"}
