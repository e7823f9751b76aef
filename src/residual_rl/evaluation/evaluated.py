"""The episodes of one policy from an evaluation file: our `eval.json`, or LeRobot's `eval_info.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.evaluation.eval_file import policies_of, read_evaluation, refuse_repeated
from residual_rl.evaluation.lerobot_eval import is_lerobot, lerobot_tasks
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import parse_json, read_text
from residual_rl.utils.text import listed, one_line, shell_command

FILES = ("eval.json", "eval_info.json")
"""Evaluation files in a folder, ours and LeRobot's."""
Episodes = dict[str, dict[int, float]]
"""The values of each episode seed, by metric."""


@dataclass(frozen=True)
class Evaluated:
    """The episodes of one policy."""

    name: str
    """File and policy."""
    tasks: dict[str, Episodes]
    """The episodes of each task."""
    settings: Mapping[str, Any] | None = None
    """The settings of the envs; None where the file does not tell."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Units of the metrics that have one."""


def read_evaluated(path: Path, policy: str | None = None, lerobot_seed: int | None = None) -> Evaluated:
    """Read the episodes of a policy.

    Args:
        path: an evaluation file, or the folder of a run or of `lerobot-eval` that has one.
        policy: a policy of the file; None: the first of residual, base, zero and others. LeRobot's files
            have one policy.
        lerobot_seed: the first seed of a file of LeRobot that does not tell its seeds.

    Raises:
        CheckpointError: the file is missing, damaged or not an evaluation.
        ConfigError: it has no such policy, or needs `lerobot_seed`.
    """
    file = _file_of(path)
    try:
        content = parse_json(read_text(file))
    except FileNotFoundError as error:
        if RunFolder(path).config_file.is_file():
            command = shell_command("eval", path, "--n-episodes", "200")
            raise CheckpointError(f"the run {path} has no evaluation yet; make one: {command}") from error
        raise CheckpointError(
            f"{file} does not exist; expected a run folder, the output folder of lerobot-eval, or the file of"
            " one"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as an evaluation ({one_line(error)})") from error
    if is_lerobot(content):
        if policy is not None:
            raise ConfigError(f"{file} is of LeRobot and has one policy, so that {policy!r} cannot be chosen")
        return Evaluated(str(path), lerobot_tasks(content, file, lerobot_seed))
    return _read_ours(path, file, policy)


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in FILES if (path / name).is_file()]
    if len(found) > 1:
        raise ConfigError(f"{path} has {' and '.join(FILES)}: name one of the two")
    return found[0] if found else path / FILES[0]


def _read_ours(path: Path, file: Path, policy: str | None) -> Evaluated:
    evaluation = read_evaluation(file)
    names = policies_of(evaluation)
    if not names:
        raise CheckpointError(f"{file} has no policies")
    chosen = names[0] if policy is None else policy
    if chosen not in names:
        raise ConfigError(f"{file} has no policy {chosen!r}; it has {listed(names)}")
    seeds = evaluation.get("episode_seeds", [])
    refuse_repeated(seeds, file)
    episodes: Episodes = {}
    for metric, summary in evaluation["policies"][chosen].items():
        values = summary.get("per_episode", {})
        episodes[metric] = {int(seed): float(value) for seed, value in values.items()}
        if len(episodes[metric]) != len(values) or set(episodes[metric]) != set(seeds):
            raise CheckpointError(
                f"{file} is damaged: the episodes of policies.{one_line(chosen)}.{one_line(metric)} are not"
                " those of episode_seeds"
            )
    settings = evaluation.get("settings", {}).get("task")
    return Evaluated(
        name=f"{path} ({chosen})",
        tasks={str(evaluation.get("task") or "task"): episodes},
        settings=settings if isinstance(settings, dict) else None,
        units={name: unit for name, unit in evaluation.get("units", {}).items() if isinstance(unit, str)},
    )
