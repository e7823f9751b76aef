"""A trained model as the base: a run of this project, a Stable-Baselines3 zip, an exported `torch.export` program, or a state dict of
ManiSkill's PPO."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from gymnasium import spaces
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.export import ExportedProgram

from residual_rl import trusted
from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.checks import check_fields
from residual_rl.composition import ScaleRule, compose, reach
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.registry import BasePolicySpec, load, register_base_policy
from residual_rl.types import BasePolicy, Obs, Plan, State

POLICY_FILE = "policy.safetensors"
_STATE = ("state",)
_MAKE_OF_RUN = "residual_rl.trained_base:make"
"""By name, as the registry names what stands above it: a run is made of tasks, base policies and learners."""
_WANTED = (
    "a run folder or policy.safetensors of this project, a Stable-Baselines3 model (.zip), an exported torch.export program (.pt2), or a "
    "state dict of ManiSkill's PPO (.pt)"
)


@dataclass(frozen=True)
class ModelCfg:
    """Settings of the `model` base policy."""

    checkpoint: Annotated[str, tyro.conf.arg(aliases=["--model-path"])] = ""
    """A run folder, a model in it or its policy.safetensors; a Stable-Baselines3 .zip; a .pt2 of torch.export; a .pt of ManiSkill's PPO."""
    trust_checkpoint: Annotated[bool, tyro.conf.arg(aliases=["--trust-checkpoint"])] = False
    """Read a .zip, .pt2 or .pt, or what a run was trained on if it is one: they can run code of whoever made them."""
    input_keys: tuple[str, ...] = ()
    """Observations that a .zip, .pt2 or .pt is given, joined in this order; none is `state`, and for a .pt that sees images the one camera
    and, where it wants them, numbers from `proprioception`. A .zip that wants a dict of observations names them itself."""
    num_action_steps: int | None = None
    """How many actions of a chunk that a .pt2 gives are executed; none is all."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_action_steps is not None and self.num_action_steps < 1:
            raise ConfigError(f"num_action_steps must be at least 1, not {self.num_action_steps}")


class TrainedPolicy(BasePolicy):
    """A base policy and the residual that was trained on it: what it plans is what the run would execute.

    Args:
        base: the run's own base policy.
        actor: its deterministic residual policy, [b, A] of named observations and `base_action`.
        obs_keys: the observations of the env that the actor reads, with their shapes.
        residual_scale: what it was exported with.
        scale_rule: of an adaptive scale; see `composition.adaptive_scale`.
        residual_size: what a residual of 1 is for each action [A], where the env says so.
    """

    def __init__(
        self,
        base: BasePolicyExecutor,
        actor: Callable[[Obs], Tensor],
        obs_keys: Mapping[str, tuple[int, ...]],
        residual_scale: float,
        scale_rule: ScaleRule | None,
        residual_size: Tensor | None,
    ):
        self.inputs = {**obs_keys, **base.policy.inputs}  # type: ignore[misc]
        self.remote = base.policy.remote
        self._base, self._actor = base, actor
        self._residual_scale, self._scale_rule, self._residual_size = residual_scale, scale_rule, residual_size

    def plan(self, obs: Obs, worlds: Tensor) -> Plan:
        base_action = self._base.act_rows(obs, worlds)
        residual_action = self._actor({**obs, "base_action": base_action})
        uncertainty = self._base.uncertainty[worlds]
        scale = self._residual_scale if self._scale_rule is None else self._scale_rule(self._residual_scale, uncertainty)
        action = compose(base_action, residual_action, reach(scale, self._residual_size))
        return Plan(action[:, None], uncertainty[:, None] if self._base.tells_uncertainty else None)

    def reset(self, mask: Tensor) -> None:
        self._base.reset(mask)

    def state_dict(self) -> State:
        return {"base": self._base.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self._base.load_state_dict(state["base"])


class SB3Policy(BasePolicy):
    """The deterministic policy of a Stable-Baselines3 model: what `model.predict(obs, deterministic=True)` gives, to rounding.

    It computes in float64: an action must not depend on how many worlds are asked with it.

    Args:
        policy: what `trusted.read_sb3_policy` gave.
        input_keys: what is joined for it where it observes a vector.
        env: its observations and actions must be those of `policy`.
        name: how errors call it.
    """

    def __init__(self, policy: Any, input_keys: Sequence[str], env: VecEnv, name: str):
        from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

        self._policy = policy.double()
        for module in policy.modules():
            if isinstance(module, BaseFeaturesExtractor):  # Stable-Baselines3 makes float32 of what it is given
                module.register_forward_pre_hook(lambda _, inputs: tuple(_double(value) for value in inputs))
        _check_actions(policy.action_space, env, name)
        space = policy.observation_space
        self._keys = tuple(space.spaces) if isinstance(space, spaces.Dict) else tuple(input_keys)
        self._joined = not isinstance(space, spaces.Dict)
        self.inputs = _shapes(self._keys, env, name)  # type: ignore[misc]
        self._channels_first = set()
        if self._joined:
            _check_size(self.inputs, space.shape, name)
        else:
            for key, wanted in space.spaces.items():
                height_first = self.inputs[key]
                if wanted.shape != height_first and wanted.shape == (*height_first[2:], *height_first[:2]):
                    self._channels_first.add(key)
                elif wanted.shape != height_first:
                    raise ConfigError(f"{name} was trained on {key!r} of shape {wanted.shape}; this env's is {height_first}")
        _probe(self, env, name)

    @torch.no_grad()
    def plan(self, obs: Obs, worlds: Tensor) -> Tensor:  # noqa: ARG002
        if self._joined:
            action = self._policy._predict(_join(obs, self._keys).cpu(), deterministic=True)
        else:
            views = {k: obs[k].permute(0, 3, 1, 2) if k in self._channels_first else obs[k] for k in self._keys}
            action = self._policy._predict({k: value.cpu() for k, value in views.items()}, deterministic=True)
        chunk: Tensor = action.float()[:, None]
        return chunk


class ProgramPolicy(BasePolicy):
    """An exported program that makes actions [b, A] or chunks [b, K, A] of the joined observations [b, O].

    It is asked for one world at a time: what it computes in float32 must not depend on how many worlds are asked together, and a program
    that was exported with a batch of one works.

    Args:
        program: what `trusted.read_exported_program` gave.
        input_keys: what is joined for it.
        num_action_steps: how many of a chunk are executed; None is all.
        env: its observations and actions must be those of `program`.
        name: how errors call it.
    """

    def __init__(self, program: ExportedProgram, input_keys: Sequence[str], num_action_steps: int | None, env: VecEnv, name: str):
        self._module, self._keys = program.module(), tuple(input_keys)
        self.inputs = _shapes(self._keys, env, name)  # type: ignore[misc]
        wanted = _input_shapes(program)
        if len(wanted) != 1 or len(wanted[0]) != 2:
            raise ConfigError(f"{name} takes inputs of shapes {wanted}; expected one, of joined observations [b, O]")
        _check_size(self.inputs, wanted[0][1:], name)
        chunk = _probe(self, env, name)
        if chunk.shape[0] != 1 or chunk.shape[-1] != len(env.action_size):
            raise ConfigError(f"{name} gives {list(chunk.shape)} for one world; this env takes actions of {len(env.action_size)}")
        self.chunk_size = chunk.shape[1]
        self.num_action_steps = self.chunk_size if num_action_steps is None else num_action_steps

    @torch.no_grad()
    def plan(self, obs: Obs, worlds: Tensor) -> Tensor:  # noqa: ARG002
        outputs = [self._module(row) for row in _join(obs, self._keys).cpu().split(1)]
        if not all(isinstance(output, Tensor) and output.dim() in (2, 3) for output in outputs):
            raise ConfigError("its program must give one tensor, [b, A] or [b, K, A]")
        actions = torch.cat(outputs)
        return actions[:, None] if actions.dim() == 2 else actions


def _double(value: Any) -> Any:
    return {k: v.double() for k, v in value.items()} if isinstance(value, dict) else value.double()


def _join(obs: Obs, keys: Sequence[str]) -> Tensor:
    return torch.cat([obs[key].float().flatten(1) for key in keys], 1)


def _shapes(keys: Sequence[str], env: VecEnv, name: str) -> dict[str, tuple[int, ...]]:
    observed: Mapping[str, Any] = env.single_observation_space.spaces  # type: ignore[attr-defined]
    for key in keys:
        if key not in observed:
            raise ConfigError(f"{name} needs the observation {key!r}; the env has {', '.join(sorted(observed))}")
    return {key: tuple(observed[key].shape) for key in keys}


def _check_size(inputs: Mapping[str, tuple[int, ...]], wanted: tuple[int, ...], name: str) -> None:
    size = sum(torch.Size(shape).numel() for shape in inputs.values())
    if wanted != (size,):
        given = " + ".join(f"{key} {shape}" for key, shape in inputs.items())
        raise ConfigError(f"{name} observes {wanted}; this env gives it {(size,)}, {given}: choose other --base.input-keys, or a model")


def _check_actions(space: Any, env: VecEnv, name: str) -> None:
    wanted = (len(env.action_size),)
    if not isinstance(space, spaces.Box) or space.shape != wanted:
        raise ConfigError(f"{name} acts in {space}; this env takes actions Box(-1.0, 1.0, {wanted})")
    if (space.low != -1.0).any() or (space.high != 1.0).any():
        raise ConfigError(f"{name} acts in {space}; this env's actions are from -1 to 1: train it on those")


def _probe(policy: BasePolicy, env: VecEnv, name: str) -> Tensor:
    """What the policy plans for one world of zeros; what it cannot do is found out before anything is trained on it."""
    observed: Mapping[str, Any] = env.single_observation_space.spaces  # type: ignore[attr-defined]
    zeros = {key: torch.from_numpy(observed[key].low * 0)[None] for key in policy.inputs}
    try:
        chunk = policy.plan(zeros, torch.zeros(1, dtype=torch.int64))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{name} cannot be run on this env's observations ({type(error).__name__}: {reason})") from error
    assert isinstance(chunk, Tensor)
    return chunk


def _input_shapes(program: ExportedProgram) -> list[tuple[int, ...]]:
    names = program.graph_signature.user_inputs
    nodes = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    return [tuple(nodes[name].shape) if isinstance(name, str) and isinstance(nodes[name], Tensor) else () for name in names]


def make(cfg: ModelCfg, env: VecEnv) -> BasePolicy:
    """The model in the file or folder that `cfg` names, for `env`."""
    if not cfg.checkpoint:
        raise ConfigError(f"it needs --base.checkpoint (or --model-path): {_WANTED}")
    path = Path(cfg.checkpoint)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; expected {_WANTED}")
    if path.is_dir() or path.suffix == ".safetensors":
        _refuse_other_kinds(path)
        policy: BasePolicy = load(_MAKE_OF_RUN)(path, cfg.trust_checkpoint, env)
        return policy
    if path.suffix == ".zip":
        return SB3Policy(trusted.read_sb3_policy(path, cfg.trust_checkpoint), cfg.input_keys or _STATE, env, str(path))
    if path.suffix == ".pt2":
        program = trusted.read_exported_program(path, cfg.trust_checkpoint)
        return ProgramPolicy(program, cfg.input_keys or _STATE, cfg.num_action_steps, env, str(path))
    if path.suffix == ".pt":
        from residual_rl.base_policies.maniskill_ppo import ManiSkillPPOPolicy

        return ManiSkillPPOPolicy(trusted.read_state_dict(path, cfg.trust_checkpoint), cfg.input_keys, env, str(path))
    raise CheckpointError(f"{path} is no model that can be a base; expected {_WANTED}")


def _refuse_other_kinds(path: Path) -> None:
    """Raise `CheckpointError` for an imitation model: another base policy knows how to run it."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    for file in files if not (path / POLICY_FILE).is_file() else ():
        if _kind(file) == "model":
            raise CheckpointError(f"{path} holds an imitation model: its base policy is `il`, --base-policy il --il-checkpoint {path}")


def _kind(file: Path) -> str | None:
    """The kind of a file of this project; None for others."""
    try:
        with safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get("residual_rl", "{}")
        kind = json.loads(text).get("kind")
        return kind if isinstance(kind, str) else None
    except (SafetensorError, ValueError, OSError):
        return None


register_base_policy(
    BasePolicySpec(
        id="model",
        summary="a trained model: a run of this project, a Stable-Baselines3 zip, a torch.export program, ManiSkill's PPO",
        make=f"{__name__}:make",
        config=f"{__name__}:ModelCfg",
    )
)
