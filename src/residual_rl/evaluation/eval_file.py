"""The file format of `eval.json`, and the order and labels of its metrics.

- `format_version` (1), `task`, `settings`, `episode_seeds` [int, …], optionally `units` {metric: "m"}
- `policies` {"residual": {metric: SUMMARY}, "base": …, "zero": …}, where SUMMARY is
  {"mean": x, "interval": [low, high] or null, "per_episode": {seed: value}}
- `paired` {"residual-base": {metric: {"mean": x, "interval": [low, high] or null}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from residual_rl.errors import CheckpointError
from residual_rl.utils.text import shell_command

FORMAT_VERSION = 1
PAIR = "residual-base"


def read_evaluation(path: Path | str) -> dict[str, Any]:
    """Read the evaluation file `path`.

    Raises:
        CheckpointError: the file is missing, damaged, or not an evaluation.
    """
    path = Path(path)
    fix = f"create it with `{shell_command('eval', path.parent)}`"
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; {fix}") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as an evaluation ({error}); {fix}") from error
    version = evaluation.get("format_version") if isinstance(evaluation, dict) else None
    if version != FORMAT_VERSION or not isinstance(evaluation.get("policies"), dict):
        raise CheckpointError(f"{path} is not an evaluation of format version {FORMAT_VERSION}; {fix}")
    return evaluation


def policies_of(evaluation: Mapping[str, Any]) -> list[str]:
    """Names of the policies: residual, base and zero first, then the others in alphabetical order."""
    order = ["residual", "base", "zero"]
    return sorted(
        evaluation["policies"], key=lambda name: (order.index(name) if name in order else len(order), name)
    )


def metrics_of(evaluation: Mapping[str, Any]) -> list[str]:
    """Names of the metrics: success, return and length first, then those of the task in stored order."""
    names = dict.fromkeys(
        metric for policy in policies_of(evaluation) for metric in evaluation["policies"][policy]
    )
    return [m for m in LABELS if m in names] + [m for m in names if m not in LABELS]


def is_rate(metric: str) -> bool:
    """Whether `metric` is a fraction of episodes, which is shown in percent."""
    return metric.startswith("success")


LABELS = {
    # in the order of tables and plots
    "success_once": "Success (once)",
    "success_at_end": "Success (at the end)",
    "return": "Return",
    "episode_length": "Episode length",
}


UNITS = {"episode_length": "steps"}
