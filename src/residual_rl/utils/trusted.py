"""The only module that reads files which can run code, and only with the user's consent.

A Stable-Baselines3 zip, a `torch.export` archive and a file of `torch.save` contain pickles, which can run
any code when they are read. Consent is the flag `--trust-checkpoint` of the command that reads them. A stored
setting, such as that of a run for the checkpoint of its base policy, is not consent.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from residual_rl.errors import CheckpointError, ConfigError, MissingDependencyError
from residual_rl.utils.text import one_line


def require_trust(path: Path, kind: str, trusted: bool) -> None:
    """Raise `ConfigError` unless `trusted`. `kind` describes the file at `path` in the message."""
    if not trusted:
        raise ConfigError(
            f"{path} is {kind}, and reading it can run any code that its author put there; "
            "if you trust its source, add --trust-checkpoint"
        )


def read_sb3_policy(path: Path, trusted: bool) -> Any:
    """Read the policy in a file of `model.save` of Stable-Baselines3.

    The statistics of a `VecNormalize` are not in that file, see `read_vec_normalize`.

    Returns:
        A `stable_baselines3.common.policies.BasePolicy` on the CPU, in eval mode. `training_obs` are the last
        observations of its training, normalised and as they were; None where the file has none.

    Raises:
        ConfigError: the file is not trusted.
        CheckpointError: the file is damaged or of another kind.
        MissingDependencyError: Stable-Baselines3 is not installed.
    """
    require_trust(path, "a Stable-Baselines3 zip, which contains pickles", trusted)
    try:
        from stable_baselines3.common.save_util import load_from_zip_file
    except ImportError as error:
        raise MissingDependencyError(
            f"stable_baselines3, which reads {path},", "install it with `pip install residual-rl[sb3]`"
        ) from error
    try:
        data, weights, _ = load_from_zip_file(path, device="cpu")
        if data is None:
            raise ValueError("it has no settings")
        settings = dict(data["policy_kwargs"])
        if data.get("use_sde"):
            settings.setdefault("use_sde", True)
        policy = data["policy_class"](
            data["observation_space"], data["action_space"], lambda _: 0.0, **settings
        )
        policy.load_state_dict(weights["policy"])
    except Exception as error:
        raise _unreadable(path, error, "a Stable-Baselines3 model", "model.save(…)") from error
    policy.set_training_mode(False)
    policy.training_obs = (data.get("_last_obs"), data.get("_last_original_obs"))
    return policy


def read_vec_normalize(path: Path, trusted: bool) -> Any:
    """Read a file of `VecNormalize.save` of Stable-Baselines3.

    Returns:
        The `VecNormalize`, without an env.

    Raises like `read_sb3_policy`.
    """
    require_trust(path, "statistics of Stable-Baselines3, which are a pickle", trusted)
    try:
        from stable_baselines3.common.vec_env import VecNormalize
    except ImportError as error:
        raise MissingDependencyError(
            f"stable_baselines3, which reads {path},", "install it with `pip install residual-rl[sb3]`"
        ) from error
    try:
        with path.open("rb") as file:
            found = pickle.load(file)  # noqa: S301
        if not isinstance(found, VecNormalize):
            raise ValueError(f"it contains a {type(found).__name__}")
    except Exception as error:
        raise _unreadable(path, error, "statistics of VecNormalize", "VecNormalize.save(…)") from error
    return found


def read_exported_program(path: Path, trusted: bool) -> torch.export.ExportedProgram:
    """Read a file of `torch.export.save`.

    Raises `ConfigError` and `CheckpointError` like `read_sb3_policy`.
    """
    require_trust(path, "a torch.export archive, which can contain pickles", trusted)
    try:
        return torch.export.load(path)
    except Exception as error:
        raise _unreadable(path, error, "an exported program", "torch.export.save(…)") from error


def read_state_dict(path: Path, trusted: bool) -> dict[str, torch.Tensor]:
    """Read a file of `torch.save(module.state_dict(), …)`: tensors by name, on the CPU.

    Raises like `read_exported_program`.
    """
    kind, writer = "a state dict", "torch.save(module.state_dict(), …)"
    state = _read_dict(path, trusted, kind, writer)
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise _unreadable(path, ValueError("it holds something other than tensors by name"), kind, writer)
    return state


def read_saved_dict(path: Path, trusted: bool) -> dict[str, Any]:
    """Read a dict from a file of `torch.save`, such as several state dicts by name, with tensors on the CPU.

    Raises like `read_exported_program`.
    """
    return _read_dict(path, trusted, "a dict of state dicts", "torch.save({…: module.state_dict()}, …)")


def _read_dict(path: Path, trusted: bool, kind: str, writer: str) -> dict[str, Any]:
    require_trust(path, "a file of torch.save, which is a pickle", trusted)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it contains a {type(state).__name__}, not a dict")
    except Exception as error:
        raise _unreadable(path, error, kind, writer) from error
    return {str(name): value for name, value in state.items()}


def _unreadable(path: Path, error: Exception, kind: str, writer: str) -> CheckpointError:
    reason = one_line(error)
    return CheckpointError(
        f"{path} cannot be read as {kind} ({type(error).__name__}: {reason}); expected a file of {writer}"
    )
