"""Reads the base policy `model`: a run, a Stable-Baselines3 zip, a `torch.export` program, or ManiSkill's
PPO."""

from __future__ import annotations

import shlex
from pathlib import Path

from safetensors import SafetensorError, safe_open

from residual_rl.base_policies.model import ModelCfg
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.runs.locate import POLICY_FILE
from residual_rl.types import BasePolicy
from residual_rl.utils import trusted
from residual_rl.utils.files import parse_json

_STATE = ("state",)
_WANTED = (
    "a run folder or policy.safetensors of this project, a Stable-Baselines3 model (.zip), "
    "an exported torch.export program (.pt2), or a state dict of ManiSkill's PPO (.pt)"
)


def make(cfg: ModelCfg, env: VecEnv) -> BasePolicy:
    """The model in the file or folder `cfg.checkpoint`, for `env`.

    Raises `CheckpointError` if there is no such model, and `ConfigError` if it does not fit `env`.
    """
    if not cfg.checkpoint:
        raise ConfigError(f"a model is needed: --base.checkpoint (or --model-path) with {_WANTED}")
    path = Path(cfg.checkpoint)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; expected {_WANTED}")
    if cfg.vec_normalize and path.suffix != ".zip":
        raise ConfigError(f"vec_normalize is for a Stable-Baselines3 model (.zip), and {path} is none")
    if path.is_dir() or path.suffix == ".safetensors":
        _refuse_other_kinds(path)
        from residual_rl.base_policies.trained_run import make_trained_run

        return make_trained_run(path, cfg.trust_checkpoint, env)
    if path.suffix == ".zip":
        from residual_rl.base_policies.sb3 import SB3Policy
        from residual_rl.base_policies.sb3_normalization import prepare_observations

        model = trusted.read_sb3_policy(path, cfg.trust_checkpoint)
        statistics = (
            trusted.read_vec_normalize(Path(cfg.vec_normalize), cfg.trust_checkpoint)
            if cfg.vec_normalize
            else None
        )
        prepare_observations(model, statistics, str(path))
        return SB3Policy(model, cfg.input_keys or _STATE, env, str(path))
    if path.suffix == ".pt2":
        from residual_rl.base_policies.exported_program import ProgramPolicy

        program = trusted.read_exported_program(path, cfg.trust_checkpoint)
        return ProgramPolicy(program, cfg.input_keys or _STATE, cfg.num_action_steps, env, str(path))
    if path.suffix == ".pt":
        from residual_rl.base_policies.maniskill_ppo import ManiSkillPPOPolicy

        state = trusted.read_state_dict(path, cfg.trust_checkpoint)
        return ManiSkillPPOPolicy(state, cfg.input_keys, env, str(path))
    raise CheckpointError(f"{path} is not a model that can be a base policy; expected {_WANTED}")


def _refuse_other_kinds(path: Path) -> None:
    """Raise `CheckpointError` for an imitation model, which needs the base policy `il`."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    for file in files if not (path / POLICY_FILE).is_file() else ():
        if _kind(file) == "model":
            raise CheckpointError(
                f"{path} contains an imitation model: use --base-policy il --il-checkpoint "
                f"{shlex.quote(str(path))}"
            )


def _kind(file: Path) -> str | None:
    """The kind of a file of this project; None for other files."""
    try:
        with safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get("residual_rl", "{}")
        kind = parse_json(text).get("kind")
        return kind if isinstance(kind, str) else None
    except (SafetensorError, ValueError, OSError):
        return None
