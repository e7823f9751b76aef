"""The one place that reads files which can run code, and it reads them only where the user says that they are trusted.

A Stable-Baselines3 zip, a `torch.export` archive and what `torch.save` wrote hold pickles: whoever made one decides what happens when it is
read. The say-so is a
flag of the command that reads, `--trust-checkpoint`; a file's own word for another file, such as a run's for its base policy's checkpoint,
never counts.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import torch

from residual_rl.errors import CheckpointError, ConfigError, MissingDependencyError
from residual_rl.utils.text import one_line

T = TypeVar("T")


def with_trust(cfg: T, trusted: bool) -> T:
    """The settings of a base policy with the user's say-so in place of what was stored; unchanged where they ask for none."""
    if not hasattr(cfg, "trust_checkpoint"):
        return cfg
    changed: T = dataclasses.replace(cfg, trust_checkpoint=trusted)  # type: ignore[type-var]
    return changed


def require_trust(path: Path, kind: str, trusted: bool) -> None:
    """Raise `ConfigError` unless the user trusts the file at `path`, which is a `kind`."""
    if not trusted:
        raise ConfigError(
            f"{path} is {kind}, and reading it can run any code that its maker put there; if you trust where it comes from, "
            "say so with --trust-checkpoint"
        )


def read_sb3_policy(path: Path, trusted: bool) -> Any:
    """The policy (a `stable_baselines3.common.policies.BasePolicy` on the CPU, in eval mode) that `model.save` of Stable-Baselines3 wrote.

    The statistics of a `VecNormalize` are not in that file. Raises `ConfigError` where it is not trusted, `CheckpointError` naming a file
    that is damaged or of another kind, and `MissingDependencyError`.
    """
    require_trust(path, "a Stable-Baselines3 zip, which holds pickles", trusted)
    try:
        from stable_baselines3.common.save_util import load_from_zip_file
    except ImportError as error:
        raise MissingDependencyError(f"stable_baselines3, which reads {path},", "install it with `pip install residual-rl[sb3]`") from error
    try:
        data, weights, _ = load_from_zip_file(path, device="cpu")
        if data is None:
            raise ValueError("it has no settings")
        settings = dict(data["policy_kwargs"])
        if data.get("use_sde"):
            settings.setdefault("use_sde", True)
        policy = data["policy_class"](data["observation_space"], data["action_space"], lambda _: 0.0, **settings)
        policy.load_state_dict(weights["policy"])
    except Exception as error:
        raise _unreadable(path, error, "a Stable-Baselines3 model", "model.save(…)") from error
    policy.set_training_mode(False)
    return policy


def read_exported_program(path: Path, trusted: bool) -> torch.export.ExportedProgram:
    """The program that `torch.export.save` wrote. Raises like `read_sb3_policy`."""
    require_trust(path, "a torch.export archive, which can hold pickles", trusted)
    try:
        return torch.export.load(path)
    except Exception as error:
        raise _unreadable(path, error, "an exported program", "torch.export.save(…)") from error


def read_state_dict(path: Path, trusted: bool) -> dict[str, torch.Tensor]:
    """The tensors by name, on the CPU, that `torch.save(module.state_dict(), …)` wrote. Raises like `read_exported_program`."""
    kind, writer = "a state dict", "torch.save(module.state_dict(), …)"
    state = _read_dict(path, trusted, kind, writer)
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise _unreadable(path, ValueError("it holds something other than tensors by name"), kind, writer)
    return state


def read_saved_dict(path: Path, trusted: bool) -> dict[str, Any]:
    """The dict that `torch.save` wrote: state dicts by name, or one of them, and what else lies beside; tensors are on the CPU. Raises like
    `read_exported_program`."""
    return _read_dict(path, trusted, "a dict of state dicts", "torch.save({…: module.state_dict()}, …)")


def _read_dict(path: Path, trusted: bool, kind: str, writer: str) -> dict[str, Any]:
    require_trust(path, "a file of torch.save, which is a pickle", trusted)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds something other than tensors by name, a {type(state).__name__}")
    except Exception as error:
        raise _unreadable(path, error, kind, writer) from error
    return {str(name): value for name, value in state.items()}


def _unreadable(path: Path, error: Exception, kind: str, writer: str) -> CheckpointError:
    reason = one_line(error)
    return CheckpointError(f"{path} cannot be read as {kind} ({type(error).__name__}: {reason}); expected what {writer} wrote")
