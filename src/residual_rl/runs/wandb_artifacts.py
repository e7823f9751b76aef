"""A run's models and evaluations as artifacts of its Weights & Biases run."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import parse_json
from residual_rl.utils.text import one_line

_log = logging.getLogger(__name__)


def log_models(run: RunFolder, project: str) -> None:
    """Log the models of a finished training with its settings and summary, and its evaluations.

    An artifact of type `model` has the layout of a run folder, so that it can be used in place of one. If
    W&B fails, a warning is logged: the files are in the run folder.
    """
    models = [run.config_file, run.summary_file, run.best_model, run.final_model]
    _log_artifacts(run, project, {"model": models, "evaluation": [run.metrics_file, run.eval_results]})


def log_evaluation(run: RunFolder, project: str) -> None:
    """Log `eval.json`, the report and, if there is one, the video; see `log_models`."""
    files = [run.eval_file, run.path / "report.html", run.path / "video.mp4"]
    _log_artifacts(run, project, {"evaluation": files})


def check_tracked(run: RunFolder, project: str | None) -> str:
    """The W&B project of a run. Raises `ConfigError` if it was trained without one, and
    `MissingDependencyError`."""
    if project is None or not _id_file(run).is_file():
        raise ConfigError(
            f"--wandb-artifacts needs a run with a W&B run: {run.path} was trained without --wandb-project"
        )
    _import_wandb()
    return project


def _log_artifacts(run: RunFolder, project: str, contents: Mapping[str, list[Path]]) -> None:
    """Log an artifact of each type with those of its files and folders that exist."""
    wandb = _import_wandb()
    try:
        tracked = wandb.init(
            project=project,
            dir=str(run.path),
            id=parse_json(_id_file(run).read_text(encoding="utf-8"))["id"],
            resume="allow",
        )
        summary = run.summary_file.read_text(encoding="utf-8") if run.summary_file.is_file() else "{}"
        for kind, paths in contents.items():
            name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', run.path.resolve().name)}-{kind}"
            artifact = wandb.Artifact(name, type=kind, metadata=parse_json(summary))
            for path in paths:
                if path.is_dir():
                    artifact.add_dir(str(path), name=path.name)
                elif path.is_file():
                    artifact.add_file(str(path), name=path.name)
            tracked.log_artifact(artifact)
        tracked.finish()
    except Exception as error:  # noqa: BLE001 (of any class; a tracker never ends a command)
        _log.warning(
            "no W&B artifact of %s was logged (%s: %s)", run.path, type(error).__name__, one_line(error)
        )


def _id_file(run: RunFolder) -> Path:
    return run.path / "wandb.json"


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise MissingDependencyError(
            "wandb", "install it with `pip install wandb`, or leave out --wandb-artifacts"
        ) from error
    return wandb
