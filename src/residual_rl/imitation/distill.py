"""Distillation: one policy that imitates base + residual of a run, and its evaluation beside both."""

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
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.evaluation.compare import run_episodes, summarize
from residual_rl.exported_policy import POLICY_FILE, ExportedPolicy, find_policy, load_policy
from residual_rl.imitation.config import ALGOS, ImitateCfg
from residual_rl.imitation.model import MODEL_FILE
from residual_rl.registry import TASKS, load
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import replacing, write_json, writing
from residual_rl.utils.seeding import DEMO_SEED, EVAL_SEED
from residual_rl.utils.validation import (
    CheckedCfg,
    Correlation,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)

DEMOS_FILE = "demos.h5"
_REST_FILE = "demos-rest.h5"
"""Episodes that were collected after an interruption, until they are in `DEMOS_FILE`."""
_MERGED_FILE = "demos-merged.h5"
"""Both together, until it takes the place of `DEMOS_FILE`."""
TRAINING = "training"
"""Folder of the imitation training, in the policy's folder."""
STUDENT = "distilled"
PAIRS = ((STUDENT, "residual"), (STUDENT, "base"))


@dataclasses.dataclass(frozen=True)
class DistillCfg(CheckedCfg):
    """How a run becomes one policy."""

    algo: Literal["bc", "flow"] = "bc"
    """What the policy is: bc (MLP, mean squared error) or flow (flow matching, chunks of actions)."""
    n_episodes: PositiveInt = 200
    """Episodes of the run that it learns from."""
    only_success: bool = False
    """Learn from solved episodes alone, as many as are asked for."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of noise on the executed actions, in units of what a residual of 1 may change, so that the policy sees how the run
    recovers; it learns what the run wanted."""
    noise_correlation: Correlation = 0.9
    """How much of a step's noise stays for the next, from 0 (white noise) to 1."""
    first_seed: NonNegativeInt = DEMO_SEED
    """Seed of the first episode that it learns from."""
    model: str = "best"
    """Which policy of the run: best, final, interrupted, or the path of an exported one."""
    eval_episodes: PositiveInt = 200
    """Episodes of the evaluation, the same for the policy, the run and its base."""
    first_eval_seed: NonNegativeInt = EVAL_SEED
    """Seed of the first of them; no training used them."""
    eval_envs: PositiveInt = 100
    """Worlds stepped together in it; the results do not depend on it."""


Collect = Callable[[Path, int, int], int]
"""`collect(file, n_episodes, first_seed)` writes episodes of the run to a new file; an exit code other than 0 tells that it was stopped."""


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The residual of a run, as it was exported."""

    run: Path
    file: Path
    exported: ExportedPolicy

    @property
    def digest(self) -> str:
        """SHA-256 of its file."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()


def find_teacher(run: Path, model: str) -> Teacher:
    """The residual of the run folder `run`. Raises `ConfigError` and `CheckpointError` where there is none."""
    if not run.is_dir():
        raise ConfigError(f"{run} is no run folder: distill takes what `residual-rl train` made")
    if not (run / "config.json").is_file():
        raise ConfigError(f"{run} is no run folder: it has no config.json; distill takes what `residual-rl train` made")
    file = find_policy(run, model).file
    return Teacher(run, file, load_policy(file))


def default_imitation(algo: str, teacher: TrainCfg, device: str = "cpu", preset: str | None = None) -> ImitateCfg:
    """Settings of the imitation: the algorithm's, on what the residual sees but for the base action, which is not there any more."""
    cfg = ImitateCfg.default(algo, preset, device)
    seen = tuple(key for key in (getattr(teacher.learner, "obs_keys", None) or cfg.obs_keys) if key != "base_action")
    return dataclasses.replace(cfg, obs_keys=seen or cfg.obs_keys)


def gather(folder: Path, cfg: DistillCfg, task_id: str, collect: Collect) -> int:
    """Collect what episodes `DEMOS_FILE` in `folder` lacks, and return 0, or the exit code of what was stopped.

    Those that an interrupted call left are kept: an episode is a function of its seed, so it goes on behind the last of them.
    """
    file, rest = folder / DEMOS_FILE, folder / _REST_FILE
    if not file.exists():
        code = collect(file, cfg.n_episodes, cfg.first_seed)
        if code:
            return code
    _merge(file, rest)
    with Demonstrations.open(file) as demos:
        if demos.task_id != task_id:
            raise ConfigError(f"{file} holds episodes of task {demos.task_id!r}, and the run was trained on {task_id!r}: remove the file")
        missing, last = cfg.n_episodes - len(demos), _last_seed(demos)
    if missing > 0:
        code = collect(rest, missing, last + 1)
        _merge(file, rest)
        return code
    return 0


def _merge(file: Path, rest: Path) -> None:
    """Put the episodes of `rest`, if there are any, behind those of `file`, and remove it.

    The writer publishes what it has as it goes on, so it writes aside: `file` holds all of its own at any time.
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
    """Train on the episodes in `folder`, or go on with it, and put the best model there. Returns the summary of the training."""
    training = RunFolder(folder / TRAINING)
    summary: dict[str, Any] = load(ALGOS[cfg.algo])(cfg, folder / DEMOS_FILE, training.path, training.config_file.exists())
    if summary["finished"]:
        with replacing(folder / MODEL_FILE) as temporary:
            temporary.write_bytes((training.path / MODEL_FILE).read_bytes())
    return summary


def student_config(teacher: TrainCfg, folder: Path) -> TrainCfg:
    """The run's worlds with the policy in `folder` as their base policy, and nothing on top."""
    return dataclasses.replace(teacher, base_policy_id="il", base=ILCfg(checkpoint=str(folder)), residual=ResidualCfg())


def evaluate_beside(folder: Path, cfg: DistillCfg, teacher: Teacher) -> dict[str, Any]:
    """Run the policy in `folder`, the run and its base on the same episodes; write and return `eval.json`."""
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
    evaluation = summarize(results, seeds, trained.task_id, settings, dict(TASKS.get(trained.task_id).metric_units), PAIRS)
    write_json(RunFolder(folder).eval_file, evaluation)
    return evaluation


def check_same_teacher(stored: str, teacher: Teacher) -> None:
    """Raise `CheckpointError` where the run's policy is another than that of the episodes that were collected."""
    if stored != teacher.digest:
        raise CheckpointError(f"{teacher.file} is not the {POLICY_FILE} that distilling began with: distill it into another --out")
