"""Evaluations of the base policy alone, kept on disk, so that no training repeats those of another.

An evaluation is a file of JSON in `base_evaluations`, named by the SHA-256 of everything that it depends on:
the settings of the task and of the base policy, the contents of the files that the latter name, the code, the
versions of the libraries, the processor and the episode seeds. A file that is damaged or belongs to other
settings is ignored and written again. To start anew, remove the folder.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from residual_rl.config import TrainCfg
from residual_rl.evaluation.evaluate import Episodes, evaluate, no_residual
from residual_rl.registry import BASE_POLICIES, TASKS
from residual_rl.residual_env import ResidualEnv
from residual_rl.runs.locate import POLICY_FILE
from residual_rl.utils.files import WriteError, exists, make_folder, parse_json, plain, to_json, write_json
from residual_rl.utils.provenance import machine
from residual_rl.utils.sensitive import sensitive_values
from residual_rl.utils.signature import digest_of

FORMAT_VERSION = 1
PACKAGES = (
    "torch",
    "numpy",
    "gymnasium",
    "mujoco",
    "mani_skill",
    "sapien",
    "diffusers",
    "lerobot",
    "stable_baselines3",
)
"""Libraries on whose version a base policy or an env may depend."""
_TRAINING_STATE = ("checkpoints", "replay", "tensorboard")
"""Folders of a run that no base policy reads."""
_log = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """`base_evaluations` in $RESIDUAL_RL_CACHE_DIR, by default `residual_rl` in $XDG_CACHE_HOME or ~/.cache.

    None, for no cache on disk, if $RESIDUAL_RL_CACHE_DIR is set to nothing, or without a home folder.
    """
    own = os.environ.get("RESIDUAL_RL_CACHE_DIR")
    if own is not None:
        return Path(own) / "base_evaluations" if own else None
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(cache) / "residual_rl" / "base_evaluations"


class BaseEvaluations:
    """The base policy of a run without a residual, evaluated once on each list of seeds.

    Evaluations are kept in memory, and on disk if they can be repeated exactly: not for a base policy on a
    server, downloaded or trained on top of another, nor for envs that are not deterministic or read a file of
    the user's.

    Args:
        cfg: the settings of the run.
        env: the envs to evaluate it in.
    """

    def __init__(self, cfg: TrainCfg, env: ResidualEnv):
        self._cfg = cfg
        self._env = env
        self._known: dict[Sequence[int], Episodes] = {}
        self._folder = cache_folder() if _is_repeatable(cfg, env) else None
        self._key = {} if self._folder is None else _key(cfg, env)

    def __call__(self, seeds: range) -> Episodes:
        """The metrics of the episodes of `seeds`, as `evaluate` returns them."""
        if seeds not in self._known:
            self._known[seeds] = self._read_or_evaluate(seeds)
        return self._known[seeds]

    def _read_or_evaluate(self, seeds: range) -> Episodes:
        if self._folder is None:
            return evaluate(self._env, no_residual(self._env), seeds)
        key = {**self._key, "seeds": list(seeds)}
        file = self._folder / f"{hashlib.sha256(to_json(key).encode()).hexdigest()}.json"
        episodes = _read(file, key, len(seeds))
        if episodes is None:
            episodes = evaluate(self._env, no_residual(self._env), seeds)
            content = {"key": key, "episodes": {name: values.tolist() for name, values in episodes.items()}}
            try:
                make_folder(self._folder)
                write_json(file, content)
            except WriteError as error:
                _log.warning("the evaluation of the base policy is not kept for other runs: %s", error)
        return episodes


def _read(file: Path, key: dict[str, Any], num_episodes: int) -> Episodes | None:
    """The evaluation in `file`; None if there is none for `key`."""
    try:
        content = parse_json(file.read_text("utf-8"))
        if content["key"] != key:
            return None
        episodes = {str(name): torch.tensor(values) for name, values in content["episodes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None
    whole = all(v.shape == (num_episodes,) and v.dtype == torch.float32 for v in episodes.values())
    return episodes if whole and "success_once" in episodes else None


def _is_repeatable(cfg: TrainCfg, env: ResidualEnv) -> bool:
    """Whether the key tells all that an evaluation depends on."""
    elsewhere = [value for value in sensitive_values(cfg.base, "") if value.kind in ("address", "code")]
    elsewhere += sensitive_values(cfg.task, "")
    paths = list(_paths(cfg.base))
    stacked = any(path.name == POLICY_FILE or any(path.rglob(POLICY_FILE)) for path in paths)
    return (
        env.vec_env.deterministic
        and not env.base_policy.policy.remote
        and not elsewhere
        and not stacked
        and not any(_paths(cfg.task))  # a model of a robot, which includes others
        and None not in _code(cfg).values()
    )


def _key(cfg: TrainCfg, env: ResidualEnv) -> dict[str, Any]:
    """All that an evaluation depends on, except for the seeds, as plain values."""
    settings, residual = cfg.to_dict(), cfg.residual
    # how its actions are executed; an adaptive scale is one of the metrics
    executed: dict[str, Any] = {"chunk": residual.chunk, "num_envs": env.num_envs}
    if env.composition.adaptive:
        executed["residual"] = settings["residual"]
    if cfg.safety.safety:
        executed["safety"] = settings["safety"]
    key = {
        "format_version": FORMAT_VERSION,
        "task": [cfg.task_id, settings["task"]],
        "base_policy": [cfg.base_policy_id, settings["base"]],
        "files": {str(path): digest_of(path, _TRAINING_STATE) for path in _paths(cfg.base)},
        "executed": executed,
        "code": _code(cfg),
        "packages": {name: _version(name) for name in PACKAGES},
        "env_software": env.vec_env.software,
        "machine": [machine()["cpu"], cfg.run.sim_device, cfg.run.torch_threads],
    }
    return dict(plain(key))


def _paths(cfg: Any) -> Iterator[Path]:
    """The files and folders that the texts among some settings name, nested settings included."""
    if not dataclasses.is_dataclass(cfg) or isinstance(cfg, type):
        return
    values = [getattr(cfg, field.name) for field in dataclasses.fields(cfg)]
    for value in values:
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str | Path) and str(text) and exists(Path(text)):
                yield Path(text)
    if hasattr(cfg, "nested_settings"):
        for nested in cfg.nested_settings().values():
            yield from _paths(nested)


def _code(cfg: TrainCfg) -> dict[str, str | None]:
    """SHA-256 of the code of this package, and of those that the task and the base policy come from."""
    makers = (TASKS.get(cfg.task_id).make, BASE_POLICIES.get(cfg.base_policy_id).make)
    names = {"residual_rl", *(reference.partition(":")[0].partition(".")[0] for reference in makers)}
    return {name: _code_of(name) for name in sorted(names)}


@functools.cache
def _code_of(module: str) -> str | None:
    """SHA-256 of the files of a top-level package or module, except for compiled ones; None if they are not
    found."""
    try:
        spec = importlib.util.find_spec(module)
    except ValueError:  # __main__
        spec = None
    if spec is None or (spec.origin is None and spec.submodule_search_locations is None):
        return None
    places = spec.submodule_search_locations or [str(spec.origin)]
    return ",".join(str(digest_of(Path(place), ("__pycache__",))) for place in places)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
