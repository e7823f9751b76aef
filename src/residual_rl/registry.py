"""Tasks, base policies and learners by id.

The packages `residual_rl.tasks`, `residual_rl.base_policies` and `residual_rl.learners` register their specs
on import. Other packages register specs with an entry point, in the group of the same name, that names a
module.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import Any, Generic, Protocol, TypeVar

import gymnasium

from residual_rl.errors import ConfigError, ResidualRLError, UnknownNameError

RESERVED_METRICS = frozenset(
    [
        # of each episode in `info["final_info"]`
        *("seed", "episode_return", "episode_length", "success_once", "success_at_end"),
        # of each episode in an evaluation
        *("return", "residual_magnitude", "action_change", "residual_scale"),
        # of an evaluation in training
        *("success_rate", "mean_reward", "mean_ep_length", "episodes"),
        *("base_success_rate", "gain", "gain_low", "gain_high", "won", "lost"),
    ]
)
"""Names of our own metrics, which those of a task must not take."""


def check_metric_names(owner: str, names: Iterable[str]) -> None:
    """Raise `ConfigError` if a metric of `owner` has the name of one of ours."""
    clashes = sorted(RESERVED_METRICS.intersection(names))
    if clashes:
        raise ConfigError(
            f"{owner} has a metric named {', '.join(clashes)}, which is a metric of every task: rename it"
        )


@dataclass(frozen=True)
class Preset:
    """Published training settings for a task."""

    name: str
    """Name, as `--preset` takes it."""
    source: str
    """Where the settings are published."""
    settings: Mapping[str, Any]
    """Values by setting, of any part of the training's settings."""
    base_policy: str | None = None
    """Id of its base policy. None: that of the task."""
    learner: str | None = None
    """Id of its learner, to which its settings apply. None: that of the task."""


@dataclass(frozen=True)
class TaskSpec:
    """A registered task. `config` and `make` are `module:attribute` strings, so that listing tasks imports no
    simulator."""

    id: str
    summary: str
    config: str
    """Dataclass of the task's settings; its fields are the task's flags on the command line."""
    make: str
    """`make(cfg, num_envs, num_threads, device) -> VecEnv`."""
    base_policy: str
    """Id of the default base policy."""
    config_overrides: Mapping[str, Any] = field(default_factory=dict)
    """Values of `config` that differ from its defaults."""
    train_overrides: Mapping[str, Any] = field(default_factory=dict)
    """Values of the training settings and of the default learner's that differ from their defaults."""
    variant: str | None = None
    """Name of the setting that selects one of several tasks, where the training defaults depend on it."""
    variant_overrides: str | None = None
    """`overrides(value) -> Mapping` for the value of that setting: like `train_overrides`, and applied after
    them."""
    learner: str = "ppo"
    """Id of the default learner. Other learners start from their own defaults."""
    learner_overrides: str | None = None
    """`overrides(value) -> Mapping` for the value of the setting `variant`: settings with other defaults of
    every learner that has them, unless its defaults are published."""
    presets: tuple[Preset, ...] = ()
    """Published settings for the task, which `train --preset` names."""
    metric_units: Mapping[str, str] = field(default_factory=dict)
    """Units of the task's own metrics, by name. "%" declares an outcome of the episode, 0 or 1, or another
    share, which is shown in percent."""
    doctor: str | None = None
    """`doctor(cfg, quick, make_policy) -> Iterable[Check]`: the task's own checks in the sanity suite; see
    `residual_rl.envs.sanity_checks`."""
    demo_settings: tuple[str, ...] = ()
    """Settings that demonstrations must share with a run whose critics learn from them: those of the goal,
    the actions and the reward."""
    max_eval_envs: int | None = None
    """Largest number of envs for evaluations; None: one per episode. For envs that each take a process or
    much memory. A task whose settings have `eval_envs` leaves it to its users."""
    oracle: str | None = None
    """Id of a base policy that solves the task, for the sanity suite and demonstrations."""
    oracle_success: float = 0.9
    """Success rate of the oracle below which the sanity suite reports a failure."""
    planners: Mapping[str, str] = field(default_factory=dict)
    """Motion planners for demonstrations, by their name for `--policy`: `make(cfg, num_workers, time_limit)
    -> Planner`; see `residual_rl.demos.collect`."""
    foreign_demo: str | None = None
    """`adapt(cfg, demo) -> Demo`: a demonstration that another program recorded in an env of this task, with
    the reward and the end that the settings `cfg` define. None: as recorded."""
    external_trajectory_settings: str | None = None
    """`settings(info) -> dict`: the settings of this task for trajectories of another program in ManiSkill's
    layout, from the contents of their `FILE.json`."""
    simulated_arm: str | None = None
    """`make(cfg, seed, real_time, cameras) -> ArmDriver`: the task's arm in simulation, which is a pose
    source itself and has `reset(seed)`."""
    hardware_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the task for an arm, where training imitates what an arm has of its own: latency, noise."""
    gymnasium_id: str | None = None
    """Id of a single env for `gymnasium.make`, e.g. `my_lab/Reach-v0`."""

    def __post_init__(self) -> None:
        check_metric_names(f"task {self.id!r}", self.metric_units)

    def eval_envs(self, num_episodes: int, cfg: Any = None) -> int:
        """Number of envs for an evaluation of `num_episodes` with the settings `cfg` of the task. The
        episodes are the same in any number."""
        return min(num_episodes, self.eval_limit(cfg) or num_episodes)

    def eval_limit(self, cfg: Any) -> int | None:
        """Largest number of envs for evaluations with the settings `cfg` of the task; None: no limit."""
        limit: int | None = getattr(cfg, "eval_envs", self.max_eval_envs)
        return limit

    def for_hardware(self, cfg: Any) -> Any:
        """The settings `cfg` of the task with its `hardware_settings`."""
        return replace(cfg, **self.hardware_settings)

    def default_config(self) -> Any:
        """The task's settings with their defaults."""
        return load(self.config)(**self.config_overrides)

    def preset(self, name: str) -> Preset:
        """The preset `name`. Raises `UnknownNameError`, which lists the known ones."""
        known = {preset.name: preset for preset in self.presets}
        if name not in known:
            raise UnknownNameError(f"preset of {self.id}", name, known)
        return known[name]


@dataclass(frozen=True)
class BasePolicySpec:
    """A registered base policy. `make` is a `module:attribute` string."""

    id: str
    summary: str
    make: str
    """`make(cfg, env) -> BasePolicy`, where `cfg` is None without `config`."""
    config: str | None = None
    """Dataclass of its settings; its fields become `--base.*` flags."""
    learned: bool = False
    """Whether it was trained on data, unlike a controller. The default learner over it is
    `LEARNED_BASE_LEARNER`."""
    train_overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the run and of the residual with other defaults on this base policy; applied after the
    learner's. `train` reports those that take effect."""
    files: str | None = None
    """`files(cfg) -> dict`: the paths of the files that its `checkpoint` stands for, by their names in a
    folder that can replace it. None: it reads no files, or others than these."""

    def default_config(self) -> Any:
        """Its settings with their defaults, or None if it has none."""
        return load(self.config)() if self.config else None


@dataclass(frozen=True)
class LearnerSpec:
    """A registered learner. `config`, `make` and `make_policy` are `module:attribute` strings: listing
    learners imports no torch."""

    id: str
    summary: str
    config: str
    """Dataclass of its settings; its fields become flags."""
    make: str
    """`make(cfg, obs_space, action_dim, num_envs, device, seed) -> Learner`, on `device`; observations may be
    on another device. If it has `default_obs_keys(obs_space) -> names`, the setting `obs_keys` of None is
    replaced by these names, and by what is worth observing of a learned base."""
    make_policy: str
    """`make_policy(cfg, obs_space, action_dim, device) -> torch.nn.Module`, for deployment: its `act(obs)`
    returns the deterministic residual action [B, A], and it loads the weights of `Learner.policy_state_dict`.
    """
    quick_overrides: Mapping[str, Any] = field(default_factory=dict)
    """Values of `config` that suit `train --quick`: 2048 env steps in 8 envs."""
    train_overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the run and of the residual with other defaults for this learner; applied after the
    task's."""
    published: bool = False
    """Whether its defaults are published settings. `train` keeps them over learned base policies too, where
    it would choose some by measuring the base policy."""

    def default_config(self) -> Any:
        """Its settings with their defaults."""
        return load(self.config)()


class _HasId(Protocol):
    """The common attribute of all specs."""

    @property
    def id(self) -> str: ...


Spec = TypeVar("Spec", bound=_HasId)


class Registry(Generic[Spec]):
    """Specs of one kind by id, filled from a package of this project and from an entry point group.

    Args:
        kind: the noun for a spec in messages, for example `task`.
        source: name of the package of this project that registers specs on import, and of the entry point
            group.
    """

    def __init__(self, kind: str, source: str):
        self._kind = kind
        self._source = source
        self._specs: dict[str, Spec] = {}
        self._discovered = False

    def register(self, spec: Spec) -> Spec:
        """Add `spec`; its id must be new."""
        if spec.id in self._specs:
            raise ConfigError(f"{self._kind} {spec.id!r} is registered already")
        self._specs[spec.id] = spec
        return spec

    def get(self, id: str) -> Spec:
        """The spec of `id`. Raises `UnknownNameError` with the known ids."""
        if id not in self._specs:
            self._discover()
        if id not in self._specs:
            raise UnknownNameError(self._kind, id, self._specs)
        return self._specs[id]

    def all(self) -> list[Spec]:
        """All specs, sorted by id."""
        self._discover()
        return [self._specs[k] for k in sorted(self._specs)]

    def import_own(self) -> None:
        """Import this project's package of the kind, which registers its specs."""
        importlib.import_module(self._source)

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        self.import_own()
        for entry in entry_points(group=self._source):
            try:
                entry.load()
            except Exception as error:
                self._discovered = False
                package_name = entry.dist.name if entry.dist else "an unknown package"
                raise ConfigError(
                    f"entry point {entry.name!r} ({entry.value}) of {package_name} failed: "
                    f"{type(error).__name__}: {error}; "
                    f"fix or uninstall that package"
                ) from error


TASKS: Registry[TaskSpec] = Registry("task", "residual_rl.tasks")
BASE_POLICIES: Registry[BasePolicySpec] = Registry("base policy", "residual_rl.base_policies")
LEARNERS: Registry[LearnerSpec] = Registry("learner", "residual_rl.learners")
LEARNED_BASE_LEARNER = "gated-sac"
"""Id of the default learner over learned bases. It does not lose what the base policy can do."""


def register_task(spec: TaskSpec) -> TaskSpec:
    """Register `spec` by its id, and with Gymnasium by its `gymnasium_id`."""
    TASKS.register(spec)
    if spec.gymnasium_id is not None:
        gymnasium.register(
            spec.gymnasium_id,
            entry_point="residual_rl.gymnasium_env:GymnasiumEnv",
            vector_entry_point="residual_rl.gymnasium_env:GymnasiumVecEnv",
            kwargs={"task": spec.id},
        )
    return spec


def register_base_policy(spec: BasePolicySpec) -> BasePolicySpec:
    """Register `spec` by its id."""
    return BASE_POLICIES.register(spec)


def register_learner(spec: LearnerSpec) -> LearnerSpec:
    """Register `spec` by its id."""
    return LEARNERS.register(spec)


def load(reference: str) -> Any:
    """Import the object `module:attribute`. Raises `ConfigError` if it does not exist."""
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ResidualRLError:
        raise
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{reference!r}, from a registered spec or a setting, cannot be loaded: {error}"
        ) from error
