"""Several policies on the same episodes: `eval.json`'s content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from residual_rl import statistics
from residual_rl.eval_table import FORMAT_VERSION, PAIR, is_rate
from residual_rl.evaluate import Episodes


def summarize(
    results: Mapping[str, Episodes], seeds: Sequence[int], task: str, settings: Mapping[str, Any], units: Mapping[str, str]
) -> dict[str, Any]:
    """Means, 95 % intervals and per-episode values of each policy, and the paired difference of residual and base.

    Args:
        results: what `evaluate` gave, by policy, all on the same `seeds`.
        seeds: the episode seeds, in the order of the results.
        task: the task's id.
        settings: what the figures were obtained with.
        units: units of metrics, by name.
    """
    evaluation: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "task": task,
        "settings": dict(settings),
        "units": dict(units),
        "episode_seeds": list(seeds),
        "policies": {name: _summaries(episodes, seeds) for name, episodes in results.items()},
        "paired": {},
    }
    if "residual" in results and "base" in results:
        residual, base = evaluation["policies"]["residual"], evaluation["policies"]["base"]
        differences = {}
        for metric in residual:
            a, b = ({int(seed): v for seed, v in policy[metric]["per_episode"].items()} for policy in (residual, base))
            differences[metric] = statistics.paired_difference(a, b, is_rate(metric)).to_json()
        evaluation["paired"][PAIR] = differences
    return evaluation


def _summaries(episodes: Episodes, seeds: Sequence[int]) -> dict[str, Any]:
    rows = {}
    for metric, values in episodes.items():
        per_episode = values.tolist()
        summary = statistics.summarize(per_episode, is_rate(metric)).to_json()
        rows[metric] = {**summary, "per_episode": {str(seed): value for seed, value in zip(seeds, per_episode, strict=True)}}
    return rows
