"""Settings of a training run; what they are called here is what their flags are called."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import tyro
from annotated_types import Interval

from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.registry import BASE_POLICIES, LEARNERS, TASKS, load
from residual_rl.utils.validation import (
    CheckedCfg,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    UnitInterval,
)

T = TypeVar("T")
ResidualScale = Annotated[float, Interval(ge=0.0, le=2.0)]
"""A bound of the residual; with 2 it can outweigh any base action."""


@dataclass(frozen=True)
class ResidualCfg(CheckedCfg):
    """The residual: how far it may reach, and what that costs."""

    residual_scale: Annotated[ResidualScale, tyro.conf.arg(aliases=["--alpha"])] = 0.6
    """Bound of the residual, as a share of the action range; 0 leaves the base policy alone."""
    residual_scale_start: ResidualScale | None = None
    """Scale at the first step; none means the scale is constant."""
    residual_scale_schedule: Literal["linear", "cosine"] = "linear"
    """How the scale goes from its start to its final value."""
    residual_scale_fraction: Share = 0.5
    """Share of the training after which the final scale is reached."""
    residual_penalty: NonNegativeFloat = 0.001
    """Weight of the squared size of the scaled residual in the reward."""
    chunk: Literal["step", "whole"] = "step"
    """A residual for every env step, or one for each executed chunk of the base policy as a whole: rewards are then summed over its steps,
    and the learner's steps and discount are of chunks."""
    adaptive: Literal["off", "uncertainty"] = "off"
    """Scale the residual by how unsure the base policy is: by the disagreement of an ensemble, or of a stochastic policy's samples."""
    adaptive_min_share: UnitInterval = 0.2
    """Share of the scale that is left where an adaptive scale's base policy is sure."""
    adaptive_uncertainty: PositiveFloat = 0.1
    """Uncertainty from which on an adaptive scale is whole, in units of the action range."""

    def scale_at(self, fraction: float) -> float:
        """The scale after `fraction` of the training, in [0, 1]."""
        if self.residual_scale_start is None:
            return self.residual_scale
        x = min(max(fraction / self.residual_scale_fraction, 0.0), 1.0)
        if self.residual_scale_schedule == "cosine":
            x = 0.5 - 0.5 * math.cos(math.pi * x)
        return self.residual_scale_start + x * (self.residual_scale - self.residual_scale_start)


@dataclass(frozen=True)
class RunCfg(CheckedCfg):
    """The run: how much, how often, where to."""

    num_envs: Annotated[PositiveInt, tyro.conf.arg(aliases=["--n-envs"])] = 32
    """Worlds stepped together."""
    total_timesteps: Annotated[PositiveInt, tyro.conf.arg(aliases=["--total-steps"])] = 250_000
    """Most env steps of the training, over all worlds; whole updates are done."""
    seed: NonNegativeInt = 1
    """Seed of the networks, the exploration and the training episodes."""
    eval_freq: NonNegativeInt = 25_000
    """Env steps between two evaluations; 0 evaluates at the end only."""
    eval_episodes: Annotated[PositiveInt, tyro.conf.arg(aliases=["--n-episodes"])] = 64
    """Episodes of an evaluation in training, on fixed seeds of its own."""
    save_freq: PositiveInt = 10_000
    """Env steps between two checkpoints."""
    log_freq: NonNegativeInt = 0
    """Env steps between two rows of figures, which are means over the updates between them; 0 means a row for each update."""
    keep_checkpoints: PositiveInt = 3
    """How many of the newest checkpoints are kept."""
    num_threads: NonNegativeInt = 0
    """Simulator threads; 0 means one a CPU core."""
    torch_threads: PositiveInt = 1
    """Threads of the networks; more than one loses when the simulator uses the cores."""
    device: str = "cpu"
    """Device of the learner: cpu, cuda, cuda:1, …"""
    sim_device: str = "cpu"
    """Device of the worlds and the base policy; MuJoCo steps on the cpu alone."""
    wandb_project: str | None = None
    """Weights & Biases project to log to, besides the run folder."""


@dataclass(frozen=True)
class TrainCfg:
    """Everything that a run is made of."""

    task_id: str
    """Registered task."""
    base_policy_id: str
    """Registered base policy."""
    task: Any
    """The task's own settings."""
    base: Any
    """The base policy's own settings, or None."""
    learner: Any
    """The learner's settings."""
    residual: ResidualCfg = field(default_factory=ResidualCfg)
    run: RunCfg = field(default_factory=RunCfg)
    learner_id: str = "ppo"
    """Registered learner."""

    def __post_init__(self) -> None:
        shared = self.residual.chunk == "step" or self.residual.adaptive == "off"
        if not shared and getattr(self.learner, "critic_input", None) == "sum":
            raise ConfigError(
                "critic_input sum needs one residual scale for each decision, and with --chunk whole and --adaptive uncertainty each step "
                "has its own: choose --critic-input res or concat, --chunk step, or --adaptive off"
            )

    @classmethod
    def default(
        cls,
        task_id: str,
        base_policy_id: str | None = None,
        learner_id: str | None = None,
        variant: str | None = None,
    ) -> TrainCfg:
        """The registered defaults of a task, with its own base policy and learner unless others are named; see `TaskSpec.variant`."""
        spec = TASKS.get(task_id)
        base_policy_id = base_policy_id or spec.base_policy
        base = BASE_POLICIES.get(base_policy_id).default_config()
        learner = LEARNERS.get(spec.learner).default_config()
        cfg = cls(task_id, base_policy_id, spec.default_config(), base, learner, learner_id=spec.learner)
        cfg = replace_fields(cfg, dict(spec.train_overrides))
        if spec.variant is not None and spec.variant_overrides is not None:
            cfg = replace_fields(
                cfg, dict(load(spec.variant_overrides)(variant or getattr(cfg.task, spec.variant)))
            )
        learner_id = learner_id or spec.learner
        if learner_id != spec.learner:
            cfg = dataclasses.replace(
                cfg, learner_id=learner_id, learner=LEARNERS.get(learner_id).default_config()
            )
        return replace_fields(cfg, dict(LEARNERS.get(learner_id).train_overrides))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: tuples become lists."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainCfg:
        """The settings that `to_dict` gave."""
        base_config = BASE_POLICIES.get(data["base_policy_id"]).config
        return cls(
            task_id=data["task_id"],
            base_policy_id=data["base_policy_id"],
            task=from_plain(load(TASKS.get(data["task_id"]).config), data["task"]),
            base=with_trust(from_plain(load(base_config), data["base"]), False)
            if base_config
            else None,  # a file's own word is none
            learner=from_plain(load(LEARNERS.get(data["learner_id"]).config), data["learner"]),
            residual=from_plain(ResidualCfg, data["residual"]),
            run=from_plain(RunCfg, data["run"]),
            learner_id=data["learner_id"],
        )


def with_trust(cfg: T, trusted: bool) -> T:
    """Settings of a base policy with the user's `--trust-checkpoint` in place of the stored value; others unchanged."""
    if not hasattr(cfg, "trust_checkpoint"):
        return cfg
    changed: T = dataclasses.replace(cfg, trust_checkpoint=trusted)  # type: ignore[type-var]
    return changed


def replace_fields(cfg: TrainCfg, values: Mapping[str, Any]) -> TrainCfg:
    """`cfg` with the named settings changed, each in the first of its `PARTS` that has it.

    `task.NAME`, `base.NAME` and so on name the part as well. Raises `UnknownNameError` for a setting that no part has.
    """
    changes: dict[str, dict[str, Any]] = {name: {} for name in PARTS}
    known = {name: _field_names(getattr(cfg, name)) for name in PARTS}
    for key, value in values.items():
        part, dot, setting = key.rpartition(".")
        found = [name for name in PARTS if setting in known[name] and (not dot or name == part)]
        if not found:
            raise UnknownNameError("setting", key, itertools.chain.from_iterable(known.values()))
        changes[found[0]][setting] = value
    parts = {name: dataclasses.replace(getattr(cfg, name), **new) for name, new in changes.items() if new}
    return dataclasses.replace(cfg, **parts)


def _field_names(part: Any) -> list[str]:
    return [] if part is None else [field.name for field in dataclasses.fields(part)]


PARTS = ("residual", "run", "learner", "task", "base")
"""The parts of `TrainCfg` that hold settings, in the order in which names are looked up."""


def from_plain(cls: type[T], data: dict[str, Any]) -> T:
    """A dataclass of flat fields from JSON: lists become the tuples that its types ask for."""
    hints = typing.get_type_hints(cls)
    unknown = set(data) - set(hints)
    if unknown:
        raise UnknownNameError(f"setting of {cls.__name__}", sorted(unknown)[0], hints)
    return cls(**{name: _typed(hints[name], value) for name, value in data.items()})


def _typed(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and value is not None:
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    return tuple(value) if typing.get_origin(hint) is tuple and value is not None else value
