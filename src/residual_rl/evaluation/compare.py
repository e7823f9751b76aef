"""Evaluation of several policies on the same episodes, in the form in which `eval.json` stores it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from residual_rl.config import TrainCfg
from residual_rl.evaluation.eval_file import FORMAT_VERSION, is_outcome
from residual_rl.evaluation.evaluate import Episodes, evaluate, no_residual
from residual_rl.exported_policy import ResidualModel
from residual_rl.factory import make_residual_env
from residual_rl.registry import TASKS
from residual_rl.runs.progress_bar import ProgressBar
from residual_rl.utils import statistics

PAIRS = (("residual", "base"),)


def run_episodes(
    cfg: TrainCfg,
    seeds: Sequence[int],
    num_envs: int,
    name: str,
    exported: ResidualModel | None = None,
    base_policy_id: str | None = None,
) -> Episodes:
    """Evaluate base + residual, or the base alone if `exported` is None, with a progress bar.

    Args:
        cfg: settings of the env, the base policy and the composition.
        seeds: episode seeds.
        num_envs: maximum number of envs; there are never more than episodes, or than the task allows.
        name: title of the progress bar.
        exported: the residual policy.
        base_policy_id: base policy to use, with its default settings, in place of that of `cfg`.

    Returns:
        The metrics of each episode, as `evaluate` returns them.
    """
    num_envs = TASKS.get(cfg.task_id).eval_envs(min(len(seeds), num_envs), cfg.task)
    env = make_residual_env(cfg, num_envs, base_policy_id=base_policy_id)
    if exported is not None:
        env.residual_scale = exported.residual_scale
    policy = (
        exported.actor(env.observation_space, env.action_dim, env.device) if exported else no_residual(env)
    )
    with ProgressBar(len(seeds), unit="episodes", title=name) as bar:
        episodes = evaluate(env, policy, seeds, on_progress=bar.update)
    env.close()
    return episodes


def summarize(
    results: Mapping[str, Episodes],
    seeds: Sequence[int],
    task: str,
    settings: Mapping[str, Any],
    units: Mapping[str, str],
    pairs: Sequence[tuple[str, str]] = PAIRS,
) -> dict[str, Any]:
    """Compute means, 95 % intervals, per-episode values and paired differences.

    Args:
        results: results of `evaluate` by policy, all on the same `seeds`.
        seeds: episode seeds, in the order of the results.
        task: id of the task.
        settings: evaluation settings to store with the metrics.
        units: unit of each metric that has one, such as "m".
        pairs: pairs of policies to compare. The difference is first minus second; pairs of which a policy is
            missing from `results` are skipped.

    Returns:
        The content of `eval.json`; `eval_file` describes its format.
    """
    evaluation: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "task": task,
        "settings": dict(settings),
        "units": dict(units),
        "episode_seeds": list(seeds),
        "policies": {},
        "paired": {},
    }
    for name, episodes in results.items():
        evaluation["policies"][name] = _summaries(evaluation, episodes)
    # Paired differences of the metrics that both policies have.
    for first, second in pairs:
        if first in results and second in results:
            one, other = (evaluation["policies"][name] for name in (first, second))
            evaluation["paired"][f"{first}-{second}"] = {
                metric: _difference(evaluation, metric, one, other) for metric in one if metric in other
            }
    return evaluation


def _summaries(evaluation: Mapping[str, Any], episodes: Episodes) -> dict[str, Any]:
    rows, seeds = {}, evaluation["episode_seeds"]
    for metric, values in episodes.items():
        per_episode = values.tolist()
        binary = is_outcome(metric, per_episode, evaluation)
        summary = statistics.summarize(per_episode, binary).to_json()
        rows[metric] = {
            **summary,
            "per_episode": {str(seed): value for seed, value in zip(seeds, per_episode, strict=True)},
        }
    return rows


def _difference(
    evaluation: Mapping[str, Any], metric: str, first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, Any]:
    a, b = _by_seed(first[metric]), _by_seed(second[metric])
    binary = is_outcome(metric, [*a.values(), *b.values()], evaluation)
    return statistics.paired_difference(a, b, binary).to_json()


def _by_seed(summary: Mapping[str, Any]) -> dict[int, float]:
    return {int(seed): value for seed, value in summary["per_episode"].items()}
