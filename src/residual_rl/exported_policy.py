"""Exported policies: everything needed to deploy a residual, without its training state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.config import TrainCfg
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.registry import LEARNERS, load
from residual_rl.runs import checkpoint
from residual_rl.types import Learner, Obs, State
from residual_rl.utils.files import make_folder, write_json
from residual_rl.utils.module_state import load_module_state

POLICY_FILE = "policy.safetensors"


def export_policy(folder: Path, cfg: TrainCfg, learner: Learner, residual_scale: float, step: int) -> None:
    """Write the residual policy that `learner` would deploy now, with the settings it was trained with, into
    `folder`.

    A learner's own `cfg` is taken where it has one: its observations may follow from its env, and another env
    may offer more.
    """
    make_folder(folder)
    cfg = dataclasses.replace(cfg, learner=getattr(learner, "cfg", cfg.learner))
    state = {
        "policy": learner.policy_state_dict(),
        "residual_scale": residual_scale,
        "step": step,
        "config": cfg.to_dict(),
    }
    checkpoint.save(folder / POLICY_FILE, state, "policy")
    write_json(folder / "config.json", cfg.to_dict())


@dataclass
class ExportedPolicy:
    """A residual policy as it was exported."""

    cfg: TrainCfg
    """The settings of the run it comes from."""
    residual_scale: float
    """The scale it was exported with, which is the one to run it with."""
    step: int
    """Env steps of training before the export."""
    weights: State

    def actor(self, obs_space: spaces.Dict, action_dim: int, device: torch.device) -> Callable[[Obs], Tensor]:
        """The deterministic residual policy for observations of `obs_space`, which include `base_action`, on
        `device`.

        Raises `CheckpointError` that names what does not fit.

        It computes in float64: in float32 matrix products round differently in batches of different size, and
        an episode would depend on the number of envs beside it.
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


def load_policy(file: Path) -> ExportedPolicy:
    """Read a file of `export_policy`. Raises `CheckpointError` naming the file and the fault."""
    state = checkpoint.load(file, "policy")
    missing = {"config", "residual_scale", "step", "policy"} - state.keys()
    if missing:
        raise CheckpointError(
            f"{file} lacks {', '.join(sorted(missing))}; expected a policy that training exported"
        )
    try:
        cfg = TrainCfg.from_dict(state["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} holds settings that cannot be read here: {error}") from error
    return ExportedPolicy(cfg, state["residual_scale"], state["step"], state["policy"])


@dataclass(frozen=True)
class FoundPolicy:
    """An exported policy on disk, as `find_policy` found it."""

    file: Path
    run: Path | None
    """The run folder it belongs to; None for a model outside of one."""
    model: str
    """Its name in the run, or its path."""

    @property
    def exported(self) -> ExportedPolicy:
        """The policy in the file."""
        return load_policy(self.file)


def find_policy(path: Path | str, model: str | None = None) -> FoundPolicy:
    """The policy that a command's argument names.

    Args:
        path: a run folder, the folder of a model, or its policy.safetensors.
        model: of a run: `best`, `final`, `interrupted`, or the path of an exported policy. None: best.

    Raises:
        ConfigError: `path` is a model already, and `model` is given too.
        CheckpointError: there is no such policy; lists the models of the run.
    """
    path = Path(path)
    # a model itself
    file = path if path.is_file() else path / POLICY_FILE
    if file.is_file():
        if model is not None:
            raise ConfigError(f"{path} is a model already: leave out --model {model}")
        run = file.resolve().parent.parent
        return FoundPolicy(file, run if (run / "config.json").is_file() else None, str(path))
    # a model of a run
    model = model or "best"
    folder = path / f"{model}_model" if model in ("best", "final", "interrupted") else Path(model)
    file = folder / POLICY_FILE if folder.is_dir() or not folder.suffix else folder
    if not file.is_file():
        known = sorted(p.parent.name.removesuffix("_model") for p in path.glob(f"*_model/{POLICY_FILE}"))
        raise CheckpointError(f"{file} does not exist; {path} has {', '.join(known) or 'no model yet'}")
    return FoundPolicy(file, path, model)
