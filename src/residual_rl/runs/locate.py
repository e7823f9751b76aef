"""The run folder that a path belongs to, for commands that take a run and are given a part of it."""

from __future__ import annotations

from pathlib import Path

from residual_rl.errors import ConfigError
from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import parse_json, read_text

POLICY_FILE = "policy.safetensors"
"""The file of an exported policy."""
_KINDS = {
    "robot": "train-robot",
    "base_policy_id": "train",
    "demos": "imitate",
    "distill": "distill",
    "grid": "sweep",
}
"""Commands by a key of their `config.json`; the first one counts."""


def enclosing_run(path: Path) -> Path:
    """The run folder that `path` is, or is a file or folder of; `path` itself if there is none."""
    candidates = (path, path.parent, path.parent.parent)
    return next((folder for folder in candidates if _is_run(folder)), path)


def run_to_resume(path: Path, command: str) -> Path:
    """The run folder that `residual-rl COMMAND --resume` is meant to resume when it is given `path`.

    Accepts the folder, its `checkpoints`, the newest of them, and files such as `config.json`. A path that
    belongs to no run is returned unchanged. Nothing is written.

    Raises `ConfigError` with the command to use for an exported model, an earlier checkpoint, and a run of
    another command.
    """
    run = enclosing_run(path)
    resume = f"residual-rl {command} --resume {run}"
    # a model has no training state
    model = path if path.is_dir() else path.parent
    if (model / POLICY_FILE).is_file():
        hint = "" if run == path else f"; to resume the run that it belongs to: {resume}"
        raise ConfigError(
            f"{path} is an exported policy, without the training state that resuming needs{hint}"
        )
    # an earlier checkpoint would be ignored
    files = CheckpointFolder(run / "checkpoints").files()
    if path.parent == run / "checkpoints" and files and path != files[max(files)]:
        raise ConfigError(
            f"{path} is not the newest checkpoint of {run}, with which a run resumes; to go back to it, move "
            f"the later ones out of {path.parent}, then: {resume}"
        )
    # the other commands have other states
    kind = _kind(run)
    if kind not in (None, command):
        raise ConfigError(
            f"{run} was written by another command; resume it with: residual-rl {kind} --resume {run}"
        )
    return run


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not (folder / POLICY_FILE).is_file()


def _kind(run: Path) -> str | None:
    """The command that wrote the run; None if it is unknown."""
    try:
        config = parse_json(read_text(RunFolder(run).config_file))
    except (OSError, ValueError):
        return None
    keys = config if isinstance(config, dict) else {}
    return next((command for key, command in _KINDS.items() if key in keys), None)
