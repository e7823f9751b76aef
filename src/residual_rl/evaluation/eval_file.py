"""The file format of `eval.json`, and the order and labels of its metrics.

- `format_version` (1), `task`, `settings`, `episode_seeds` [int, …], optionally `units` {metric: "m"}
- `policies` {"residual": {metric: SUMMARY}, "base": …, "zero": …}, where SUMMARY is
  {"mean": x, "interval": [low, high] or null, "per_episode": {seed: value}}
- `paired` {"residual-base": {metric: {"mean": x, "interval": [low, high] or null}}}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.utils.files import parse_json, read_text
from residual_rl.utils.text import shell_command

FORMAT_VERSION = 1
PAIR = "residual-base"
LARGEST = 1e300
"""Whole numbers in JSON can be larger than any float."""
_LONGEST_SEED = 30
"""Digits of a seed."""


def read_evaluation(path: Path | str) -> dict[str, Any]:
    """Read the evaluation file `path`.

    Raises:
        CheckpointError: the file is missing, damaged, or not an evaluation.
    """
    path = Path(path)
    fix = f"create it with `{shell_command('eval', path.parent)}`"
    try:
        evaluation = parse_json(read_text(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; {fix}") from error
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as an evaluation ({error}); {fix}") from error
    version = evaluation.get("format_version") if isinstance(evaluation, dict) else None
    if version != FORMAT_VERSION or not isinstance(evaluation.get("policies"), dict):
        raise CheckpointError(f"{path} is not an evaluation of format version {FORMAT_VERSION}; {fix}")
    problem = _problem(evaluation)
    if problem is not None:
        raise CheckpointError(f"{path} is damaged: {problem} is missing or of a wrong type; {fix}")
    return evaluation


def check_replaceable(path: Path, num_episodes: int, num_policies: int) -> None:
    """Raise `ConfigError` if the file `path` holds a larger evaluation than one of `num_policies` policies on
    `num_episodes` episodes each. A file that is missing or is no evaluation may be replaced."""
    try:
        earlier = read_evaluation(path)
    except CheckpointError:
        return
    episodes, policies = len(earlier.get("episode_seeds", [])), len(earlier["policies"])
    if episodes * policies > num_episodes * num_policies:
        raise ConfigError(
            f"{path} holds a larger evaluation ({', '.join(policies_of(earlier))}: {episodes} episodes) than "
            f"this one ({num_policies} x {num_episodes}); replace it with --overwrite, or choose another "
            "file with --output"
        )


def _problem(evaluation: Mapping[str, Any]) -> str | None:
    """The first part of an evaluation that is not as described at the top of this file."""
    seeds = evaluation.get("episode_seeds", [])
    if not isinstance(seeds, list) or not all(map(is_seed, seeds)):
        return "episode_seeds"
    for name in ("settings", "units", "policies", "paired"):
        if not isinstance(evaluation.get(name, {}), dict):
            return name
    for part in ("policies", "paired"):
        for name, metrics in evaluation.get(part, {}).items():
            if not isinstance(metrics, dict):
                return f"{part}.{name}"
            for metric, summary in metrics.items():
                if not isinstance(summary, dict) or not _is_summary(summary):
                    return f"{part}.{name}.{metric}"
    return None


def _is_summary(summary: Mapping[str, Any]) -> bool:
    interval, episodes = summary.get("interval", ""), summary.get("per_episode", {})
    if not isinstance(episodes, dict) or not all(
        seed.isdecimal() and len(seed) <= _LONGEST_SEED for seed in episodes
    ):
        return False
    if interval is not None and not (isinstance(interval, list) and len(interval) == 2):
        return False
    values = [summary.get("mean"), *(interval or []), *episodes.values()]
    return all(isinstance(value, int | float) and abs(value) < LARGEST for value in values)


def is_seed(value: object) -> bool:
    """Whether `value` can be the seed of an episode."""
    return type(value) is int and abs(value) < 10**_LONGEST_SEED


def refuse_repeated(seeds: Iterable[int], file: Path) -> None:
    """Raise `ConfigError` if a seed is there more than once: its episodes cannot be paired."""
    repeated = [seed for seed, count in Counter(seeds).items() if count > 1]
    if repeated:
        raise ConfigError(
            f"{file} has more than one episode of {len(repeated)} seed(s), e.g. {repeated[0]}, so that they"
            " cannot be paired; evaluate each seed once"
        )


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


def is_rate(metric: str, evaluation: Mapping[str, Any] | None = None) -> bool:
    """Whether `metric` is shown in percent: success, and what the task declares with the unit "%"."""
    return unit_of(metric, evaluation) == "%"


def is_outcome(metric: str, values: Iterable[float], evaluation: Mapping[str, Any] | None = None) -> bool:
    """Whether the values of `metric` are outcomes: a rate that is 0 or 1 in each episode. A task may also
    declare a share in between."""
    return is_rate(metric, evaluation) and set(values) <= {0.0, 1.0}


def unit_of(metric: str, evaluation: Mapping[str, Any] | None = None) -> str | None:
    """The unit of `metric`: ours, or the one that the task declares."""
    return UNITS.get(metric) or (evaluation or {}).get("units", {}).get(metric)


LABELS = {
    # in the order of tables and plots
    "success_once": "Success (once)",
    "success_at_end": "Success (at the end)",
    "return": "Return",
    "episode_length": "Episode length",
}


UNITS = {"success_once": "%", "success_at_end": "%", "episode_length": "steps"}
