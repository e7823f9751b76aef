"""`residual-rl probe`: measure a base policy before a training, and choose the settings that depend on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from residual_rl.cli.flags import parse_flags, parse_head, require_target
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.demos.base_demos import training_demos
from residual_rl.evaluation.probe import Probe, num_episodes, probe
from residual_rl.evaluation.probe_advice import Advice, advise
from residual_rl.evaluation.probe_report import advice_texts, probe_table, probe_texts, save_probe
from residual_rl.registry import TASKS
from residual_rl.runs.progress_bar import ProgressBar
from residual_rl.runs.run_folder import RunFolder, output_folder
from residual_rl.utils.console import Console
from residual_rl.utils.files import make_folder
from residual_rl.utils.seeding import PROBE_SEED
from residual_rl.utils.validation import CheckedCfg, EpisodeSeed, NumEnvs, NumThreads, PositiveInt

N_EPISODES = 80
"""Episodes without disturbance."""
QUICK_EPISODES = 8
"""The same with `--quick`."""


@dataclasses.dataclass(frozen=True)
class ProbeFlags(CheckedCfg):
    """Flags of `probe` that are not settings."""

    base_policy: Annotated[str, tyro.conf.arg(aliases=["--expert-type"])] = ""
    """The policy to measure: an id of `residual-rl list`."""
    learner: str = ""
    """Learner whose settings are chosen: an id of `residual-rl list`."""
    n_episodes: PositiveInt = N_EPISODES
    """Episodes without disturbance; a third of them is run again under each disturbance."""
    first_seed: EpisodeSeed = PROBE_SEED
    """Seed of the first episode; the others follow. Training and evaluation use other seeds."""
    probe_envs: NumEnvs | None = None
    """Envs stepped together; the results do not depend on it. None: one for each episode."""
    num_threads: NumThreads | None = None
    """Simulator threads; 0 means OMP_NUM_THREADS, or else one per CPU core. None: as in training."""
    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=["--out", "--output"])] = None
    """Folder for probe.json and probe.png. None: probes/TASK-DATE-TIME."""
    quick: bool = False
    """Run a few episodes only, as a smoke test."""


def main(argv: Sequence[str]) -> int:
    """Parse, measure, print what was found and what follows from it."""
    task_id, rest = require_target(argv, "probe", "TASK", "Measure a base policy before a training")
    # the settings: those of the task and of the base policy, as in `train`
    head = parse_head(ProbeFlags(), rest, f"probe {task_id}")
    cfg = TrainCfg.default(task_id, head.base_policy or None, head.learner or None)
    own = ProbeFlags(
        base_policy=cfg.base_policy_id,
        learner=cfg.learner_id,
        n_episodes=QUICK_EPISODES if head.quick else N_EPISODES,
    )
    groups = {"own": own, "task": cfg.task, "base": cfg.base}
    about = "Measure how much disturbance a base policy tolerates and how its episodes fail."
    parsed = parse_flags(groups, rest, f"probe {task_id}", about)
    flags: ProbeFlags = parsed.pop("own")
    cfg = dataclasses.replace(cfg, **parsed)
    if flags.num_threads is not None:
        cfg = replace_fields(cfg, {"num_threads": flags.num_threads})
    # measure, print and save
    console = Console()
    with output_folder(flags.output_dir, "probes", task_id) as output:
        RunFolder(output).require_empty()
        make_folder(output)
        measured = measure(cfg, flags.n_episodes, flags.first_seed, flags.probe_envs)
        report(console, *measured)
        save_probe(output, *measured)
    console.say(f"Probe: {output}")
    return 0


def measure(
    cfg: TrainCfg, n_episodes: int, first_seed: int = PROBE_SEED, num_envs: int | None = None
) -> tuple[Probe, Advice]:
    """Measure the base policy of a training, with a progress bar, and choose settings accordingly.

    Args:
        cfg: the settings of the training.
        n_episodes: number of episodes without disturbance.
        first_seed: seed of the first one.
        num_envs: largest number of envs; None: one for each episode.
    """
    torch.set_num_threads(cfg.run.torch_threads)
    seeds = range(first_seed, first_seed + n_episodes)
    disturbed = max(1, n_episodes // 3)
    envs = TASKS.get(cfg.task_id).eval_envs(min(num_envs or n_episodes, n_episodes), cfg.task)
    with ProgressBar(num_episodes(n_episodes, disturbed), unit="episodes", title="probe") as bar:
        measured = probe(cfg, seeds, disturbed, envs, bar.update)
    limit_episodes = hasattr(cfg.task, "max_episode_steps")
    return measured, advise(measured, cfg.learner, training_demos(cfg), limit_episodes)


def report(
    console: Console, probe: Probe, advice: Advice, overridden: Mapping[str, Any] | None = None
) -> None:
    """Print the figures, and each setting with its reason.

    Args:
        console: where to print.
        probe: the measurements.
        advice: the settings that follow from them.
        overridden: values of settings that the user chose, by name.
    """
    console.print(probe_table(probe))
    console.say(*probe_texts(probe))
    console.say("", "What follows for the training:", *advice_texts(advice, overridden or {}))
