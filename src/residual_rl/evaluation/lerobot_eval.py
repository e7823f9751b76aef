"""LeRobot's `eval_info.json`: what `lerobot-eval` writes, as versions 0.4.4 and 0.6.1 do.

- `per_task` [{"task_group": "pusht", "task_id": 0, "metrics": METRICS}, …], where METRICS is
  {"sum_rewards": [x, …], "max_rewards": [x, …], "successes": [true, …], …} with a value for each episode;
- `per_group` and `overall`: aggregates of these, which are not read.

It has no seeds: episode i of a task has the seed `--seed` + i. What LeRobot's `eval_policy` returns for one
task, which earlier versions wrote, is read too: `aggregated`, and `per_episode` [{"episode_ix": i,
"sum_reward": x, "max_reward": x, "success": true, "seed": 1000 or null}, …].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.evaluation.eval_file import LARGEST, is_seed, refuse_repeated
from residual_rl.utils.text import one_line

DEFAULT_SEED = 1000
"""LeRobot's default of `--seed`."""
_METRICS = {"success_once": "successes", "return": "sum_rewards"}
"""Our names of LeRobot's lists. Its success is that of any step."""
_EPISODE_METRICS = {"success_once": "success", "return": "sum_reward"}


def is_lerobot(content: Any) -> bool:
    """Whether a JSON value is an evaluation by LeRobot."""
    return isinstance(content, dict) and (
        "per_task" in content or {"per_episode", "aggregated"} <= content.keys()
    )


def lerobot_tasks(
    content: Mapping[str, Any], file: Path, first_seed: int | None
) -> dict[str, dict[str, dict[int, float]]]:
    """The values of each episode seed, by task and metric.

    Args:
        content: the content of the file.
        file: the file, for messages.
        first_seed: seed of the first episode, if the file does not tell.

    Raises:
        CheckpointError: the content is not as described at the top of this file.
        ConfigError: the seeds are unknown, or repeated.
    """
    if "per_task" not in content:
        return {"task": dict(_single_task(content["per_episode"], file, first_seed))}
    entries = content["per_task"]
    if not isinstance(entries, list) or not entries:
        raise _damaged(file, "per_task")
    if first_seed is None:
        raise ConfigError(
            f"{file} does not tell the seeds of its episodes; give the --seed of lerobot-eval, "
            f"--lerobot-seed {DEFAULT_SEED} if it was left at its default"
        )
    # The id of a task is shown where its group has several.
    names = [_task_name(entry, file) for entry in entries]
    sizes = Counter(group for group, _ in names)
    tasks = {}
    for (group, task_id), entry in zip(names, entries, strict=True):
        name = group if sizes[group] == 1 else f"{group}/{task_id}"
        if name in tasks:
            raise ConfigError(
                f"{file} has the task {one_line(name)} twice, so that its episodes cannot be paired"
            )
        tasks[name] = dict(
            _task_metrics(entry.get("metrics"), f"per_task of {one_line(name)}", file, first_seed)
        )
    return tasks


def _task_name(entry: Any, file: Path) -> tuple[str, str]:
    group, task_id = (
        entry.get(key) if isinstance(entry, dict) else None for key in ("task_group", "task_id")
    )
    if not isinstance(group, str) or type(task_id) not in (int, str):
        raise _damaged(file, "per_task")
    return group, str(task_id)


def _task_metrics(
    metrics: Any, part: str, file: Path, first_seed: int
) -> Iterator[tuple[str, dict[int, float]]]:
    if not isinstance(metrics, dict):
        raise _damaged(file, part)
    lengths = set()
    for name, key in _METRICS.items():
        values = _numbers(metrics.get(key), f"{part}, {key}", file, outcomes=name == "success_once")
        lengths.add(len(values))
        yield name, {first_seed + index: value for index, value in enumerate(values)}
    if len(lengths) > 1:
        raise _damaged(file, f"{part}: lists of different lengths, which")


def _single_task(episodes: Any, file: Path, first_seed: int | None) -> Iterator[tuple[str, dict[int, float]]]:
    if not isinstance(episodes, list) or not all(isinstance(episode, dict) for episode in episodes):
        raise _damaged(file, "per_episode")
    seeds = [episode.get("seed") for episode in episodes]
    if first_seed is not None and any(seed is not None for seed in seeds):
        raise ConfigError(f"{file} tells its seeds; leave out --lerobot-seed")
    if first_seed is not None:
        seeds = list(range(first_seed, first_seed + len(episodes)))
    if any(seed is None for seed in seeds):
        raise ConfigError(f"{file} has episodes without a seed, which cannot be paired; see --lerobot-seed")
    if not all(map(is_seed, seeds)):
        raise _damaged(file, "per_episode, seed")
    refuse_repeated(seeds, file)
    for name, key in _EPISODE_METRICS.items():
        given = [episode.get(key) for episode in episodes]
        values = _numbers(given, f"per_episode, {key}", file, outcomes=name == "success_once")
        yield name, dict(zip(seeds, values, strict=True))


def _numbers(values: Any, part: str, file: Path, outcomes: bool) -> Sequence[float]:
    """The finite numbers of a list that is not empty; of `outcomes`, each must be false, true, 0 or 1."""
    if not isinstance(values, list) or not values:
        raise _damaged(file, part)
    if not all(isinstance(value, int | float) and abs(value) < LARGEST for value in values):
        raise _damaged(file, part)
    numbers = [float(value) for value in values]
    if outcomes and not set(numbers) <= {0.0, 1.0}:
        raise _damaged(file, part)
    return numbers


def _damaged(file: Path, part: str) -> CheckpointError:
    return CheckpointError(
        f"{file} is no evaluation of lerobot-eval, or is damaged: {part} is missing or of a wrong type"
    )
