"""Weights & Biases as a second place for metrics, which never ends a run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.utils.files import make_folder, parse_json, write_json
from residual_rl.utils.text import one_line

_log = logging.getLogger(__name__)


def check_wandb(project: str) -> None:
    """Check, before a run begins, that it can be logged to a W&B project: the library is installed, the name
    is valid, and the user is logged in, unless `WANDB_MODE` is offline or disabled.

    Raises:
        MissingDependencyError: W&B is not installed.
        ConfigError: one of the other conditions does not hold.
    """
    wandb = _library()
    try:
        wandb.Settings(project=project)  # checks the name
        if wandb.setup().settings.mode in ("online", "shared", None):
            wandb.login(verify=True)
    except Exception as error:
        raise ConfigError(
            f"W&B cannot log to project {project!r}: {one_line(error).rstrip('.')}; fix that, log to files "
            "with WANDB_MODE=offline, or leave out --wandb-project"
        ) from error


class WandbTracker:
    """A W&B run, started or resumed. Its id is stored in `wandb.json` in the run folder.

    Whatever fails in W&B or its process is a warning, after which nothing is sent any more.

    Args:
        run_dir: the run folder.
        project: W&B project.
        config: settings to show there.

    Raises:
        MissingDependencyError: W&B is not installed.
    """

    def __init__(self, run_dir: Path, project: str, config: Mapping[str, Any] | None):
        self._wandb = _library()
        self._run: Any = None
        self._guarded(lambda: self._start(run_dir, project, config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send metrics."""
        if self._run is not None:
            self._guarded(lambda: self._run.log(dict(values), step=step))

    def close(self) -> None:
        """Send what remains and end."""
        if self._run is not None:
            self._guarded(self._run.finish)

    def _start(self, run_dir: Path, project: str, config: Mapping[str, Any] | None) -> None:
        make_folder(run_dir)
        id_file = run_dir / "wandb.json"
        run_id = parse_json(id_file.read_text(encoding="utf-8"))["id"] if id_file.exists() else None
        self._run = self._wandb.init(
            project=project,
            dir=str(run_dir),
            config=dict(config or {}),
            id=run_id,
            resume="allow",
            name=run_dir.name,
        )
        write_json(id_file, {"project": project, "id": self._run.id})

    def _guarded(self, call: Callable[[], object]) -> None:
        """Call W&B; if that fails, warn and end the tracking."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 (whatever happens to W&B, the run continues)
            self._run = None
            _log.warning(
                "W&B failed (%s: %s); the run continues without it, and its metrics are in the run folder",
                type(error).__name__,
                one_line(error),
            )
            with contextlib.suppress(Exception):
                self._wandb.teardown()  # otherwise W&B tries again when the process exits


def _library() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise MissingDependencyError(
            "wandb", "install it with `pip install wandb`, or leave out --wandb-project"
        ) from error
    return wandb
