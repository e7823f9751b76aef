"""Exported policies: the weights and settings needed to deploy a residual, without the training state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.config import ResidualScale, TrainCfg, from_plain
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.registry import LEARNERS, load
from residual_rl.runs import checkpoint
from residual_rl.runs.locate import POLICY_FILE, enclosing_run
from residual_rl.types import Learner, Obs, State
from residual_rl.utils.files import make_folder, parse_json, write_json
from residual_rl.utils.module_state import load_module_state
from residual_rl.utils.text import one_line
from residual_rl.utils.validation import CheckedCfg, NonNegativeInt, check_fields

LEROBOT_FILE = "model.safetensors"
"""The file of an exported policy in a folder of LeRobot's format."""
LEROBOT_TYPE = "residual_rl"
"""LeRobot's name for the policy in such a folder."""


def export_policy(folder: Path, cfg: TrainCfg, learner: Learner, residual_scale: float, step: int) -> None:
    """Write the current policy of `learner` and the settings of its training into `folder`.

    If the learner has a `cfg`, it replaces `cfg.learner`: its observation keys may have been derived from the
    training env, and another env may have more observations.
    """
    make_folder(folder)
    cfg = _with_settings_of(learner, cfg)
    state = {
        "policy": learner.policy_state_dict(),
        "residual_scale": residual_scale,
        "step": step,
        "config": cfg.to_dict(),
    }
    checkpoint.save(folder / POLICY_FILE, state, "policy")
    write_json(folder / "config.json", cfg.to_dict())
    cfg.write_signature(folder)


def set_residual_scale(folder: Path, residual_scale: float) -> None:
    """Change the residual scale of the policy in `folder`, if it is another; 0 makes it the base policy."""
    state = _read(folder / POLICY_FILE)
    if state["residual_scale"] != residual_scale:
        checkpoint.save(folder / POLICY_FILE, {**state, "residual_scale": residual_scale}, "policy")


def read_own_policy(folder: Path, cfg: TrainCfg, learner: Learner) -> ExportedPolicy:
    """The policy that the training with the settings `cfg` has exported to `folder`."""
    file = folder / POLICY_FILE
    return _checked(file, _with_settings_of(learner, cfg), _read(file))


def _with_settings_of(learner: Learner, cfg: TrainCfg) -> TrainCfg:
    return dataclasses.replace(cfg, learner=getattr(learner, "cfg", cfg.learner))


class ResidualModel(Protocol):
    """A trained residual policy that can be evaluated."""

    @property
    def residual_scale(self) -> float:
        """The residual scale to run it with."""

    def actor(self, obs_space: spaces.Dict, action_dim: int, device: torch.device) -> Callable[[Obs], Tensor]:
        """See `ExportedPolicy.actor`."""


@dataclass(frozen=True)
class BaseFiles(CheckedCfg):
    """Files that an exported policy's base policy reads in place of the `checkpoint` in its settings."""

    path: str
    """The folder with the files; a relative path starts from that of the exported policy."""
    sha256: str
    """SHA-256 of the names and the contents of the files."""
    names: tuple[str, ...]
    """Names of the files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        odd = [name for name in self.names if name in ("", ".", "..") or "/" in name]
        if odd or not self.names:
            shown = repr(one_line(odd[0], 80)) if odd else "nothing"
            raise ConfigError(f"names must be the names of files in a folder, not {shown}")


@dataclass
class ExportedPolicy:
    """The contents of an exported residual policy."""

    cfg: TrainCfg
    """Settings of the run that it was exported from."""
    residual_scale: ResidualScale
    """The residual scale to run it with."""
    step: NonNegativeInt
    """Env steps of training before the export."""
    weights: State
    """Tensors by name."""
    base_files: tuple[BaseFiles, ...] = ()
    """Files of the base policy, for a policy that was exported together with them."""

    def actor(self, obs_space: spaces.Dict, action_dim: int, device: torch.device) -> Callable[[Obs], Tensor]:
        """The deterministic residual policy on `device`, as a function from observations to residual actions
        [B, A].

        It computes in float64. In float32, matrix products round differently in batches of different sizes,
        so that an episode would depend on the number of envs.

        Args:
            obs_space: space of the observations, including `base_action`.
            action_dim: A.
            device: device to compute on.

        Raises:
            CheckpointError: the weights do not match the network.
        """
        make = load(LEARNERS.get(self.cfg.learner_id).make_policy)
        policy = make(self.cfg.learner, obs_space, action_dim, device)
        load_module_state(policy, self.weights, "the exported residual policy")
        policy.double()

        @torch.no_grad()
        def act(obs: Obs) -> Tensor:
            action: Tensor = policy.act(obs)
            return action.float()

        return act


def save_policy(file: Path, exported: ExportedPolicy) -> None:
    """Write `exported` to `file`, and its user's signature beside it if a setting needs one."""
    state = {
        "policy": exported.weights,
        "residual_scale": exported.residual_scale,
        "step": exported.step,
        "config": exported.cfg.to_dict(),
        "base_files": [
            {**dataclasses.asdict(found), "names": list(found.names)} for found in exported.base_files
        ],
    }
    checkpoint.save(file, state, "policy")
    exported.cfg.write_signature(file.parent)


def load_policy(file: Path) -> ExportedPolicy:
    """Read a file written by `export_policy`. Raises `CheckpointError` with the file and the problem."""
    state = _read(file)
    try:
        cfg = TrainCfg.from_dict(state["config"], file)
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(file, error) from error
    return _checked(file, cfg, state)


def _read(file: Path) -> State:
    """The contents of a file written by `export_policy`."""
    state = checkpoint.load(file, "policy")
    missing = {"config", "residual_scale", "step", "policy"} - state.keys()
    if missing:
        raise CheckpointError(
            f"{file} lacks {', '.join(sorted(missing))}; expected a policy exported by `residual-rl train`"
        )
    return state


def _checked(file: Path, cfg: TrainCfg, state: State) -> ExportedPolicy:
    """The policy in `state`, with the settings `cfg`."""
    try:
        files = tuple(from_plain(BaseFiles, found) for found in state.get("base_files", ()))
        exported = ExportedPolicy(cfg, state["residual_scale"], state["step"], state["policy"], files)
        check_fields(exported)
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(file, error) from error
    return exported


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file} has settings that this release cannot read: {error}")


@dataclass(frozen=True)
class FoundPolicy:
    """An exported policy on disk, as returned by `find_policy`."""

    file: Path
    run: Path | None
    """The run folder it belongs to; None for a model outside of one."""
    model: str
    """Its name in the run, or its path."""

    @property
    def exported(self) -> ExportedPolicy:
        """The policy in the file."""
        return load_policy(self.file)


def _is_lerobot_folder(path: Path) -> bool:
    """Whether `residual-rl export --format lerobot` wrote the folder."""
    if not (path / LEROBOT_FILE).is_file():
        return False
    try:
        config = parse_json((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("type") == LEROBOT_TYPE


def find_policy(path: Path | str, model: str | None = None) -> FoundPolicy:
    """Find the exported policy that an argument of a command refers to.

    Args:
        path: a run folder or its config.json, the folder of a model, its policy.safetensors, or a folder that
            was exported for LeRobot.
        model: of a run: `best`, `final`, `interrupted`, or the path of an exported policy. None: best.

    Raises:
        ConfigError: `path` is a model already, and `model` is given too.
        CheckpointError: there is no such policy; lists the models of the run.
    """
    path = Path(path)
    path = path.parent if path.name == "config.json" else path
    # `path` is a model.
    file = path if path.is_file() else path / (LEROBOT_FILE if _is_lerobot_folder(path) else POLICY_FILE)
    if file.is_file():
        if model is not None:
            raise ConfigError(f"{path} is a model already: leave out --model {model}")
        # not the target of a link: results are written into the run
        run = file.absolute().parent.parent
        return FoundPolicy(file, run if (run / "config.json").is_file() else None, str(path))
    # `path` is a run, or another of its folders.
    path = enclosing_run(path)
    model = model or "best"
    folder = path / f"{model}_model" if model in ("best", "final", "interrupted") else Path(model)
    file = folder / POLICY_FILE if folder.is_dir() or not folder.suffix else folder
    if not file.is_file():
        known = sorted(p.parent.name.removesuffix("_model") for p in path.glob(f"*_model/{POLICY_FILE}"))
        raise CheckpointError(f"{file} does not exist; {path} has {', '.join(known) or 'no model yet'}")
    return FoundPolicy(file, path, model)
