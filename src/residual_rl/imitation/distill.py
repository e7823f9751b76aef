"""Distillation of a run's base policy and residual into a single policy, and its comparison with both."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from residual_rl.base_policies.il import ILCfg
from residual_rl.config import ResidualCfg, TrainCfg
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.writer import DemoWriter
from residual_rl.envs.spaces import BASE_OBS
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.evaluation.compare import run_episodes, summarize
from residual_rl.exported_policy import ExportedPolicy, find_policy, load_policy
from residual_rl.imitation.config import ALGOS, ImitateCfg
from residual_rl.imitation.model import MODEL_FILE
from residual_rl.registry import TASKS, load
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import replacing, write_json, writing
from residual_rl.utils.seeding import DEMO_SEED, EVAL_SEED
from residual_rl.utils.validation import (
    CheckedCfg,
    Correlation,
    EpisodeSeed,
    NonNegativeFloat,
    NumEnvs,
    PositiveInt,
)

DEMOS_FILE = "demos.h5"
_REST_FILE = "demos-rest.h5"
"""Episodes collected after an interruption, before they are merged into `DEMOS_FILE`."""
_MERGED_FILE = "demos-merged.h5"
"""The merged file, before it replaces `DEMOS_FILE`."""
TRAINING = "training"
"""Subfolder with the run of the imitation training."""
STUDENT = "distilled"
PAIRS = ((STUDENT, "residual"), (STUDENT, "base"))


@dataclasses.dataclass(frozen=True)
class DistillCfg(CheckedCfg):
    """Settings of distillation."""

    algo: Literal["bc", "flow"] = "bc"
    """Algorithm of the policy: bc (MLP, mean squared error) or flow (flow matching, chunks of actions)."""
    n_episodes: PositiveInt = 200
    """Number of episodes of the run to learn from."""
    only_success: bool = False
    """Learn from successful episodes only; `n_episodes` counts these."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of noise added to the executed actions, in residual units, so that the data include
    recoveries. The labels are the actions without noise."""
    noise_correlation: Correlation = 0.9
    """Correlation of the noise from one step to the next, from 0 (white noise) to 1."""
    first_seed: EpisodeSeed = DEMO_SEED
    """Seed of the first episode to learn from."""
    model: str = "best"
    """Policy of the run: best, final, interrupted, or the path of an exported policy."""
    eval_episodes: PositiveInt = 200
    """Number of evaluation episodes; the same ones for the policy, the run and its base policy."""
    first_eval_seed: EpisodeSeed = EVAL_SEED
    """Seed of the first evaluation episode; training does not use these seeds."""
    eval_envs: NumEnvs = 100
    """Number of envs in the evaluation; the results do not depend on it."""


Collect = Callable[[Path, int, int], int]
"""`collect(file, n_episodes, first_seed)` writes episodes of the run to a new file and returns an exit code,
nonzero if stopped."""


@dataclasses.dataclass(frozen=True)
class Teacher:
    """An exported residual policy of a run."""

    run: Path
    """The run folder."""
    file: Path
    """The file of the policy."""
    exported: ExportedPolicy

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()


def find_teacher(run: Path, model: str) -> Teacher:
    """Load the policy `model` of the run folder `run`. Raises `ConfigError` or `CheckpointError` if there is
    none."""
    if not run.is_dir():
        raise ConfigError(f"{run} is not a run folder: distill needs the output of `residual-rl train`")
    if not (run / "config.json").is_file():
        raise ConfigError(
            f"{run} is not a run folder, as it has no config.json: distill needs the output of `residual-rl"
            " train`"
        )
    file = find_policy(run, model).file
    return Teacher(run, file, load_policy(file))


def default_imitation(
    algo: str, teacher: TrainCfg, device: str = "cpu", preset: str | None = None
) -> ImitateCfg:
    """Default settings of the imitation, with the observations of the residual except those of its base."""
    cfg = ImitateCfg.default(algo, preset, device)
    teacher_keys = getattr(teacher.learner, "obs_keys", None) or cfg.obs_keys
    keys = tuple(key for key in teacher_keys if key not in BASE_OBS)
    return dataclasses.replace(cfg, obs_keys=keys or cfg.obs_keys)


def gather(folder: Path, cfg: DistillCfg, task_id: str, collect: Collect) -> int:
    """Collect the episodes that `DEMOS_FILE` in `folder` still lacks.

    Episodes of an interrupted call are kept, and collection continues after the last of their seeds.

    Returns:
        0, or the exit code of a stopped collection.
    """
    file, rest = folder / DEMOS_FILE, folder / _REST_FILE
    if not file.exists():
        code = collect(file, cfg.n_episodes, cfg.first_seed)
        if code:
            return code
    _merge(file, rest)
    with Demonstrations.open(file) as demos:
        if demos.task_id != task_id:
            raise ConfigError(
                f"{file} has episodes of task {demos.task_id!r}, but the run was trained on {task_id!r}:"
                " remove the file"
            )
        missing, last = cfg.n_episodes - len(demos), _last_seed(demos)
    if missing > 0:
        code = collect(rest, missing, last + 1)
        _merge(file, rest)
        return code
    return 0


def _merge(file: Path, rest: Path) -> None:
    """Append the episodes of `rest`, if it exists, to `file`, and remove `rest`.

    The merged episodes are written to a third file first, so that `file` is complete at any time.
    """
    if not rest.exists():
        return
    merged = file.with_name(_MERGED_FILE)
    with Demonstrations.open(file) as old, Demonstrations.open(rest) as new:
        last = _last_seed(old)
        with DemoWriter(merged, old.info, overwrite=True) as writer:
            for i in range(len(old)):
                writer.add(old.episode(i))
            for i in range(len(new)):
                demo = new.episode(i)
                if demo.seed is None or demo.seed > last:
                    writer.add(demo)
    with writing(file):
        merged.replace(file)
        merged.with_suffix(".json").replace(file.with_suffix(".json"))
    rest.unlink()
    rest.with_suffix(".json").unlink(missing_ok=True)


def _last_seed(demos: Demonstrations) -> int:
    return int(demos.episodes[len(demos) - 1]["episode_seed"])


def imitate(folder: Path, cfg: ImitateCfg) -> dict[str, Any]:
    """Train on the episodes in `folder`, or resume, and copy the best model there. Returns the summary of the
    training."""
    training = RunFolder(folder / TRAINING)
    summary: dict[str, Any] = load(ALGOS[cfg.algo])(
        cfg, folder / DEMOS_FILE, training.path, training.config_file.exists()
    )
    if summary["finished"]:
        with replacing(folder / MODEL_FILE) as temporary:
            temporary.write_bytes((training.path / MODEL_FILE).read_bytes())
    return summary


def student_config(teacher: TrainCfg, folder: Path) -> TrainCfg:
    """Settings of the run's envs with the policy in `folder` as the base policy."""
    return dataclasses.replace(
        teacher, base_policy_id="il", base=ILCfg(checkpoint=str(folder)), residual=ResidualCfg()
    )


def evaluate_beside(folder: Path, cfg: DistillCfg, teacher: Teacher) -> dict[str, Any]:
    """Evaluate the policy in `folder`, the run and its base policy on the same episodes; write and return
    `eval.json`."""
    trained = teacher.exported.cfg
    seeds = range(cfg.first_eval_seed, cfg.first_eval_seed + cfg.eval_episodes)
    results = {
        "residual": run_episodes(trained, seeds, cfg.eval_envs, "residual", teacher.exported),
        "base": run_episodes(trained, seeds, cfg.eval_envs, "base"),
        STUDENT: run_episodes(student_config(trained, folder), seeds, cfg.eval_envs, STUDENT),
    }
    settings = {
        "n_episodes": cfg.eval_episodes,
        "first_seed": cfg.first_eval_seed,
        "run": str(teacher.run),
        "model_step": teacher.exported.step,
        "base_policy": trained.base_policy_id,
        "task": dataclasses.asdict(trained.task),
    }
    evaluation = summarize(
        results, seeds, trained.task_id, settings, dict(TASKS.get(trained.task_id).metric_units), PAIRS
    )
    write_json(RunFolder(folder).eval_file, evaluation)
    return evaluation


def check_same_teacher(stored: str, teacher: Teacher) -> None:
    """Raise `CheckpointError` if the run's policy is not the one that collected the episodes, which has the
    digest `stored`."""
    if stored != teacher.digest:
        raise CheckpointError(
            f"{teacher.file} has changed since this distillation started: distill it into another"
            " --output-dir"
        )
