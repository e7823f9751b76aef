"""The demonstrations that a base policy was trained on, if they can be found and fit the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from residual_rl.config import TrainCfg
from residual_rl.demos.foreign import episode_in_task
from residual_rl.errors import ResidualRLError
from residual_rl.evaluation.probe_advice import TrainingDemos
from residual_rl.registry import TASKS
from residual_rl.runs.locate import enclosing_run
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import exists, parse_json
from residual_rl.utils.text import one_line


def training_demos(cfg: TrainCfg) -> TrainingDemos:
    """The demonstrations of `cfg.learner`, or else those that the base policy was trained on.

    `residual-rl imitate` records their file in the `config.json` of its folder, which is the base policy's
    setting `checkpoint`. The file is used if it still exists, is of the same task with the same goal, actions
    and reward, and has rewards and successes.
    """
    given = getattr(cfg.learner, "demos", None)
    if given is not None:
        return TrainingDemos(Path(given), getattr(cfg.learner, "demo_episodes", None))
    recorded = _recorded(getattr(cfg.base, "checkpoint", ""))
    if not isinstance(recorded.get("demos"), str):
        return TrainingDemos(None, why_not="those that the base policy was trained on are not known")
    path = Path(recorded["demos"])
    if not exists(path):
        return TrainingDemos(
            None, why_not=f"{one_line(path)}, which the base policy was trained on, does not exist here"
        )
    problem = _problem(path, cfg)
    if problem is not None:
        return TrainingDemos(None, why_not=f"{path}, which the base policy was trained on, {problem}")
    episodes = recorded.get("n_episodes")
    return TrainingDemos(path, episodes if type(episodes) is int and episodes > 0 else None)


def _recorded(checkpoint: str) -> dict[str, Any]:
    """The settings in the folder of the checkpoint; empty if there are none."""
    if not checkpoint:
        return {}
    try:
        folder = enclosing_run(Path(checkpoint))
        recorded = parse_json(RunFolder(folder).config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return recorded if isinstance(recorded, dict) else {}


def _problem(path: Path, cfg: TrainCfg) -> str | None:
    """Why the demonstrations in `path` cannot be used; None if they can."""
    from residual_rl.demos.reader import Demonstrations  # imported here because HDF5 is slow to import

    try:
        with Demonstrations.open(path) as demos:
            if demos.names_task and demos.task_id != cfg.task_id:
                return f"is of task {demos.task_id!r}"
            # the settings that critics depend on; None stands for the env's own choice
            mine = cfg.to_dict()["task"]
            for name in TASKS.get(cfg.task_id).demo_settings:
                stored, here = demos.task_settings.get(name), mine.get(name)
                if None not in (stored, here) and stored != here:
                    return f"was collected with {name} {stored!r}, not {here!r}"
            missing = [key for key in _obs_keys(cfg) if key not in demos.obs_shapes]
            if missing:
                return f"lacks the observation {missing[0]!r}"
            first = episode_in_task(demos, 0, (), cfg)
            if first.rewards is None or first.success is None:
                return f"has no {'rewards' if first.rewards is None else 'successes'}"
            solved = (
                (entry.get("success") for entry in demos.episodes)
                if demos.names_task
                else (episode_in_task(demos, i, (), cfg).succeeded for i in range(len(demos)))
            )
            if not any(solved):
                return "has no successful episode"
    except ResidualRLError as error:
        return f"cannot be used: {error}"
    return None


def _obs_keys(cfg: TrainCfg) -> list[str]:
    return [key for key in getattr(cfg.learner, "obs_keys", None) or ("state",) if key != "base_action"]
