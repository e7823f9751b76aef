"""Evaluation files, ours and LeRobot's, with given outcomes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FIRST_SEED = 1000


def ours(outcomes: Mapping[str, Sequence[float]], **values: Any) -> dict[str, Any]:
    """The content of an `eval.json` with the `outcomes` of each policy from `FIRST_SEED` on."""
    seeds = [FIRST_SEED + i for i in range(len(next(iter(outcomes.values()))))]

    def summary(numbers: Sequence[float]) -> dict[str, Any]:
        per_episode = {str(seed): value for seed, value in zip(seeds, numbers, strict=True)}
        return {"mean": sum(numbers) / len(numbers), "interval": None, "per_episode": per_episode}

    policies = {
        name: {"success_once": summary(row), "return": summary([10.0 * x - 1.0 for x in row])}
        for name, row in outcomes.items()
    }
    return {
        "format_version": 1,
        "task": "so101-paper",
        "settings": {"task": {"tolerance": 0.02}},
        "units": {},
        "episode_seeds": seeds,
        "policies": policies,
        "paired": {},
        **values,
    }


def lerobots(tasks: Mapping[tuple[str, int], Sequence[float]]) -> dict[str, Any]:
    """The content of LeRobot's `eval_info.json`, as 0.4.4 and 0.6.1 write it."""
    return {
        "per_task": [
            {
                "task_group": group,
                "task_id": task_id,
                "metrics": {
                    "sum_rewards": [10.0 * x - 1.0 for x in outcomes],
                    "max_rewards": [float(x) for x in outcomes],
                    "successes": [bool(x) for x in outcomes],
                    "video_paths": [],
                },
            }
            for (group, task_id), outcomes in tasks.items()
        ],
        "per_group": {},
        "overall": {"pc_success": 50.0, "eval_s": 1.0},
    }


def write(path: Path, content: Any) -> Path:
    """Write JSON, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
