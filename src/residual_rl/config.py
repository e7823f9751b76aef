"""Settings of a training run. The fields have the names of their flags."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from annotated_types import Interval

from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.registry import BASE_POLICIES, LEARNED_BASE_LEARNER, LEARNERS, TASKS, load
from residual_rl.utils.consent import check_consent, with_typed_values
from residual_rl.utils.sensitive import Address, sensitive_values
from residual_rl.utils.signature import digest_of, is_own, read_signature, sign, write_signature
from residual_rl.utils.validation import (
    CheckedCfg,
    NonNegativeFloat,
    NonNegativeInt,
    NumEnvs,
    NumThreads,
    PositiveFloat,
    PositiveInt,
    Rule,
    Share,
    UnitInterval,
)

T = TypeVar("T")
ResidualScale = Annotated[float, Interval(ge=0.0, le=2.0)]
"""A bound of the residual; with 2 it can outweigh any base action."""


@dataclass(frozen=True)
class ResidualCfg(CheckedCfg):
    """The residual: its bound, its schedule and its penalty."""

    residual_scale: Annotated[ResidualScale, tyro.conf.arg(aliases=["--alpha"])] = 0.6
    """Bound of the residual, as a share of the action range; with 0, the base policy acts alone."""
    residual_scale_start: ResidualScale | None = None
    """Scale at the first step. None: the scale is constant."""
    residual_scale_schedule: Literal["linear", "cosine"] = "linear"
    """Shape of the transition from the start to the final scale."""
    residual_scale_fraction: Share = 0.5
    """Share of the training after which the final scale is reached."""
    residual_penalty: NonNegativeFloat = 0.001
    """Weight of the squared size of the scaled residual in the reward."""
    chunk: Literal["step", "whole"] = "step"
    """`step`: a residual for each env step. `whole`: one for each executed chunk of the base policy; rewards
    are summed over the chunk, and the learner's steps and discount count chunks."""
    adaptive: Literal["off", "uncertainty"] = "off"
    """Scale the residual by the uncertainty of the base policy: the disagreement of an ensemble, or the
    spread of a stochastic policy's samples."""
    adaptive_min_share: UnitInterval = 0.2
    """`adaptive`: share of the scale that remains where the uncertainty is 0."""
    adaptive_uncertainty: PositiveFloat = 0.1
    """`adaptive`: uncertainty at which the scale reaches its full value, in units of the action range."""

    @property
    def scheduled(self) -> bool:
        """Whether the scale changes in the course of training."""
        return self.residual_scale_start not in (None, self.residual_scale)

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
    """The run: amounts, intervals and devices."""

    num_envs: Annotated[NumEnvs, tyro.conf.arg(aliases=["--n-envs"])] = 32
    """Envs stepped together."""
    total_timesteps: Annotated[PositiveInt, tyro.conf.arg(aliases=["--total-steps"])] = 250_000
    """Env steps of the training, summed over all envs and rounded down to whole updates."""
    seed: NonNegativeInt = 1
    """Seed of the networks, the exploration and the training episodes."""
    eval_freq: NonNegativeInt = 25_000
    """Env steps between two evaluations; 0 evaluates at the end only."""
    eval_episodes: Annotated[PositiveInt, tyro.conf.arg(aliases=["--n-episodes"])] = 64
    """Episodes of an evaluation in training, on a fixed list of seeds."""
    confirm_episodes: NonNegativeInt = 200
    """Fresh episodes, at most, for the comparison of the best model with the base policy at the end of the
    training; without a gain it becomes the base policy. 0 keeps it without a comparison."""
    train_episode_steps: PositiveInt | None = None
    """Steps after which an episode of the training is truncated, if that is earlier than in the task. Stuck
    episodes then cost less. Evaluations have the task's limit."""
    save_freq: PositiveInt = 10_000
    """Env steps between two checkpoints."""
    log_freq: NonNegativeInt = 0
    """Env steps between two rows of metrics, which are means over the updates between them; 0 writes a row
    for each update."""
    keep_checkpoints: PositiveInt = 3
    """Number of checkpoints to keep."""
    num_threads: NumThreads = 0
    """Simulator threads; 0 means OMP_NUM_THREADS, or else one per CPU core."""
    torch_threads: Annotated[int, Interval(ge=1, le=1024)] = 1
    """Threads of the networks; more than one is slower when the simulator uses the cores."""
    device: str = "cpu"
    """Device of the learner: cpu, cuda, cuda:1, …"""
    sim_device: str = "cpu"
    """Device of the envs and the base policy; MuJoCo steps on the CPU only."""
    wandb_project: Address | None = None
    """Weights & Biases project to log to, besides the run folder."""
    wandb_artifacts: bool = False
    """Log the models and evaluations as artifacts of the W&B run when the training has finished."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.wandb_artifacts and self.wandb_project is None:
            raise ConfigError("wandb_artifacts needs a project: set it with --wandb-project PROJECT")


Workspace = Annotated[
    tuple[float, float, float, float, float, float],
    Rule("x, y and z, each from low to high", lambda box: all(box[i] < box[i + 1] for i in (0, 2, 4))),
]


@dataclass(frozen=True)
class SafetyLimitsCfg(CheckedCfg):
    """Limits on the joint targets that an arm is commanded."""

    joint_margin: NonNegativeFloat = 0.0
    """Distance that joint targets keep from the limits of the joints [rad]."""
    max_step: PositiveFloat = 0.1
    """Largest change of a joint target in one policy step [rad]."""
    max_speed: PositiveFloat = 3.0
    """Largest speed of a joint target [rad/s]."""
    max_jump: PositiveFloat = 0.05
    """Largest increase of that change from one step to the next [rad]; slowing down is not limited."""
    workspace: Workspace | None = None
    """Box around the tool's position that joint targets lead to, in the frame of the base: from and to along
    x, then y, then z [m]. None: not limited."""


@dataclass(frozen=True)
class SafetyCfg(SafetyLimitsCfg):
    """The same limits in simulation."""

    safety: bool = False
    """Apply the limits of `deploy` on joint targets in training and evaluation: those of the joints,
    `max_step`, `max_speed`, `max_jump` and `workspace`."""


@dataclass(frozen=True)
class TrainCfg:
    """All settings of a run."""

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
    safety: SafetyCfg = field(default_factory=SafetyCfg)

    def __post_init__(self) -> None:
        critic_input = getattr(self.learner, "critic_input", None)
        adaptive = self.residual.adaptive != "off"
        if critic_input == "sum" and adaptive and self.residual.chunk == "whole":
            raise ConfigError(
                "critic_input sum needs one residual scale per chunk, but with --chunk whole and "
                "--adaptive uncertainty it differs between steps: choose --chunk step, or --adaptive off"
            )
        if critic_input in ("res", "concat") and (adaptive or self.residual.scheduled):
            flag = "--adaptive uncertainty" if adaptive else "--residual-scale-start"
            raise ConfigError(
                f"critic_input {critic_input} gives the critics the residual action without its scale, which "
                f"changes with {flag}: choose --critic-input sum, or leave out {flag}"
            )

    @classmethod
    def default(
        cls,
        task_id: str,
        base_policy_id: str | None = None,
        learner_id: str | None = None,
        variant: str | None = None,
        preset: str | None = None,
    ) -> TrainCfg:
        """The default settings of a task, with its default base policy and learner unless others are given.
        The default learner over a learned base is `registry.LEARNED_BASE_LEARNER`.

        `variant` is a value of the setting `TaskSpec.variant`, and `preset` the name of one of
        `TaskSpec.presets`, whose settings take precedence over all other defaults.
        """
        spec = TASKS.get(task_id)
        published = spec.preset(preset) if preset is not None else None
        base_policy_id = base_policy_id or (published and published.base_policy) or spec.base_policy
        base = BASE_POLICIES.get(base_policy_id).default_config()
        learner = LEARNERS.get(spec.learner).default_config()
        cfg = cls(task_id, base_policy_id, spec.default_config(), base, learner, learner_id=spec.learner)
        cfg = replace_fields(cfg, dict(spec.train_overrides))
        if spec.variant is not None:
            variant = variant or getattr(cfg.task, spec.variant)
        if spec.variant_overrides is not None:
            cfg = replace_fields(cfg, dict(load(spec.variant_overrides)(variant)))
        preset_learner = published and (published.learner or spec.learner)
        learned = BASE_POLICIES.get(base_policy_id).learned
        learner_id = learner_id or preset_learner or (LEARNED_BASE_LEARNER if learned else spec.learner)
        if published is not None and learner_id != preset_learner:
            raise ConfigError(f"preset {preset} has settings of {preset_learner}: leave out --learner")
        if learner_id != spec.learner:
            cfg = dataclasses.replace(
                cfg, learner_id=learner_id, learner=LEARNERS.get(learner_id).default_config()
            )
        # the learner's defaults, then the task's for all learners, the base policy's, and last the preset
        cfg = replace_fields(cfg, dict(LEARNERS.get(learner_id).train_overrides))
        if spec.learner_overrides is not None and not LEARNERS.get(learner_id).published:
            values = load(spec.learner_overrides)(variant)
            cfg = replace_fields(cfg, {k: v for k, v in values.items() if hasattr(cfg.learner, k)})
        cfg = replace_fields(cfg, dict(BASE_POLICIES.get(base_policy_id).train_overrides))
        return cfg if published is None else replace_fields(cfg, dict(published.settings))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: tuples become lists."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, data: dict[str, Any], file: Path | None) -> TrainCfg:
        """Restore settings from the result of `to_dict`.

        Args:
            data: the plain values.
            file: the file that they were read from, in whose folder `write_signature` may have left the
                user's signature. None: they come from this process.

        Raises:
            ConsentError: sensitive settings that the user has neither signed nor confirmed; see
                `residual_rl.utils.consent`. Trust in other files is withdrawn instead.
        """
        own = file is None or _is_own(data, file.parent)

        def part(name: str, reference: str | type) -> Any:
            config = load(reference) if isinstance(reference, str) else reference
            return from_plain(config, data[name] if own else with_typed_values(config, data[name], name))

        base_config = BASE_POLICIES.get(data["base_policy_id"]).config
        base = part("base", base_config) if base_config else None
        cfg = cls(
            task_id=data["task_id"],
            base_policy_id=data["base_policy_id"],
            task=part("task", TASKS.get(data["task_id"]).config),
            base=base if own and hasattr(base, "checkpoint") else with_trust(base, False),
            learner=part("learner", LEARNERS.get(data["learner_id"]).config),
            residual=part("residual", ResidualCfg),
            run=part("run", RunCfg),
            safety=part("safety", SafetyCfg) if "safety" in data else SafetyCfg(),
            learner_id=data["learner_id"],
        )
        if file is not None:
            check_consent(cfg, file, own)
        return cfg

    def write_signature(self, folder: Path) -> None:
        """Sign the settings in `folder` as the user's own, if any of them is sensitive."""
        if sensitive_values(self):
            write_signature(folder, _signed_part(self.to_dict()))


def _is_own(data: dict[str, Any], folder: Path) -> bool:
    """Whether the signature in `folder` is the user's, for these settings."""
    signature = read_signature(folder)
    return signature is not None and is_own(_signed_part(data), signature)


def _signed_part(data: dict[str, Any]) -> dict[str, Any]:
    """What a signature of a run covers: the settings of the task and of the base policy as a whole, so that
    trust in a file does not carry over to another one, the contents of that file, and the tracker's
    project."""
    names = ("task_id", "task", "base_policy_id", "base")
    base = data["base"] or {}
    # any text may be the path of a file that trust applies to: a checkpoint, its statistics
    texts = {name: value for name, value in base.items() if isinstance(value, str) and value}
    return {
        **{name: data[name] for name in names},
        "wandb_project": data["run"]["wandb_project"],
        "trusted": {name: digest_of(Path(value)) for name, value in texts.items()}
        if base.get("trust_checkpoint")
        else None,
    }


def with_trust(cfg: T, trusted: bool) -> T:
    """Settings of a base policy with the user's `--trust-checkpoint` in place of the stored value; others
    unchanged."""
    if not hasattr(cfg, "trust_checkpoint"):
        return cfg
    changed: T = dataclasses.replace(cfg, trust_checkpoint=trusted)  # type: ignore[type-var]
    return changed


def replace_fields(cfg: TrainCfg, values: Mapping[str, Any]) -> TrainCfg:
    """`cfg` with the named settings changed, each in the first of its `PARTS` that has it.

    `task.NAME`, `base.NAME` and so on name the part as well. Raises `UnknownNameError` for a setting that no
    part has.
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


PARTS = ("residual", "run", "learner", "task", "base", "safety")
"""The parts of `TrainCfg` with settings, in the order in which names are looked up."""


def sign_task_settings(task_id: str, settings: Mapping[str, Any]) -> str | None:
    """The user's signature of a task's plain settings, for `read_task_settings`; None if none of them is
    sensitive."""
    cfg = from_plain(load(TASKS.get(task_id).config), dict(settings))
    return sign(_task_document(task_id, settings)) if sensitive_values(cfg) else None


def read_task_settings(task_id: str, settings: Mapping[str, Any], file: Path, signature: str | None) -> Any:
    """A task's settings from a file, such as demonstrations.

    Args:
        task_id: the task.
        settings: the plain values.
        file: the file, for messages.
        signature: what `sign_task_settings` gave for it.

    Raises:
        ConsentError: sensitive settings that the user has neither signed nor confirmed.
        UnknownNameError: unknown task or setting.
        ConfigError: an invalid value.
    """
    cfg = from_plain(load(TASKS.get(task_id).config), dict(settings))
    check_consent(cfg, file, is_own(_task_document(task_id, settings), signature), "task")
    return cfg


def _task_document(task_id: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"task_id": task_id, "task": dict(settings)}


def from_plain(cls: type[T], data: Any) -> T:
    """A dataclass of flat fields from JSON: lists become tuples for fields that are tuples."""
    if not isinstance(data, dict):
        raise ConfigError(f"{cls.__name__} must be an object with settings, not {data!r}")
    hints = typing.get_type_hints(cls)
    unknown = set(data) - set(hints)
    if unknown:
        raise UnknownNameError(f"setting of {cls.__name__}", sorted(unknown)[0], hints)
    return cls(**{name: _typed(hints[name], value) for name, value in data.items()})


def _typed(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and value is not None:
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    return tuple(value) if typing.get_origin(hint) is tuple and isinstance(value, list) else value
