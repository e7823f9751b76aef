"""Selection of a run's best model: paired with the base policy in training, confirmed on fresh episodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from residual_rl.config import TrainCfg
from residual_rl.evaluation.base_cache import BaseEvaluations
from residual_rl.evaluation.deployment import RATE, Deployment
from residual_rl.evaluation.evaluate import Episodes, evaluate
from residual_rl.evaluation.sequential import gain_interval, log_e_value, may_show_gain, shows_gain
from residual_rl.exported_policy import export_policy, read_own_policy, set_residual_scale
from residual_rl.factory import make_residual_env
from residual_rl.registry import TASKS
from residual_rl.residual_env import ResidualEnv
from residual_rl.runs.progress import Progress
from residual_rl.runs.run_folder import RunFolder
from residual_rl.types import Learner, Metrics
from residual_rl.utils.files import make_folder, write_json
from residual_rl.utils.seeding import CONFIRMATION_SEED, TRAINING_EVAL_SEED
from residual_rl.utils.statistics import paired_difference, won_and_lost

BLOCK = 16
"""Episodes between two looks at the comparison with the base policy."""


def make_eval_env(cfg: TrainCfg) -> ResidualEnv:
    """The envs of the evaluations in training.

    On the CPU, where each env costs time, there is one for two episodes, at least 32: an evaluation that
    stops early then leaves episodes out. Fewer envs would make the others slower, a quarter by 20 %.
    """
    episodes = cfg.run.eval_episodes
    if cfg.run.sim_device == "cpu":
        episodes = min(episodes, max(32, math.ceil(episodes / 2)))
    return make_residual_env(cfg, TASKS.get(cfg.task_id).eval_envs(episodes, cfg.task))


class ModelSelection:
    """Evaluates the residual on the same episodes as the base policy, and keeps the best in `best_model`.

    At first, `best_model` is the base policy, exported with a residual scale of 0.

    Args:
        cfg: the settings of the run.
        folder: the run folder.
        env: the envs for evaluations; see `make_eval_env`.
    """

    def __init__(self, cfg: TrainCfg, folder: RunFolder, env: ResidualEnv):
        self._cfg = cfg
        self._folder = folder
        self._env = env
        self._base = BaseEvaluations(cfg, env)
        self._seeds = range(TRAINING_EVAL_SEED, TRAINING_EVAL_SEED + cfg.run.eval_episodes)

    def evaluate(self, learner: Learner, residual_scale: float, progress: Progress) -> Metrics:
        """Evaluate the current policy without exploration, and export it if it is the best so far.

        The first evaluation is that of the base policy. Others stop once the policy cannot become the best,
        or is significantly worse than the best on the episodes so far.
        """
        # Evaluate, and store the metrics of each episode.
        step, base = progress.step, self._base(self._seeds)
        if progress.best is None:
            episodes, residual_scale = base, 0.0
        else:
            self._env.residual_scale = residual_scale
            best = progress.best_outcomes
            episodes = evaluate(
                self._env,
                lambda obs: learner.act(obs, deterministic=True),
                self._seeds,
                stop=lambda first: _cannot_be_best(first[RATE].tolist(), best),
            )
        make_folder(self._folder.eval_results)
        file = self._folder.eval_results / f"step_{step:09d}.json"
        write_json(file, {name: values.tolist() for name, values in episodes.items()})

        # Export the best policy. One that was not evaluated on all episodes is not the best.
        metrics = _metrics(episodes) | _paired(episodes, base)
        score = (metrics["eval/success_rate"], metrics["eval/mean_reward"])
        complete = len(episodes[RATE]) == len(self._seeds)
        if complete and (progress.best is None or score > progress.best):
            progress.best, progress.best_step, progress.best_scale = score, step, residual_scale
            progress.best_outcomes = episodes[RATE].tolist()
            export_policy(self._folder.best_model, self._cfg, learner, residual_scale, step)
        return metrics

    def confirm(
        self,
        learner: Learner,
        progress: Progress,
        interrupted: Callable[[], bool],
        on_progress: Callable[[int, int], None],
    ) -> Deployment | None:
        """Compare the best model with the base policy on fresh episodes, and make it the base policy if it
        shows no gain.

        Args:
            learner: the learner, for the settings of its policy.
            progress: the finished training.
            interrupted: whether to leave the comparison, which then returns None.
            on_progress: called before each block of episodes with the number of episodes so far and at most.
        """
        # Without a better evaluation, there is nothing to confirm.
        total, step = self._cfg.run.confirm_episodes, progress.best_step
        base_outcomes = self._base(self._seeds)[RATE].tolist()
        if sum(progress.best_outcomes) <= sum(base_outcomes):
            set_residual_scale(self._folder.best_model, 0.0)
            return Deployment("base", False, step)
        set_residual_scale(self._folder.best_model, progress.best_scale)
        if total == 0:
            return Deployment("residual", False, step)

        # Compare block by block, until the answer is clear.
        exported = read_own_policy(self._folder.best_model, self._cfg, learner)
        actor = exported.actor(self._env.observation_space, self._env.action_dim, self._env.device)
        pairs: list[tuple[float, float]] = []
        while (deployment := _deployment(pairs, step, total)) is None:
            on_progress(len(pairs), total)
            if interrupted():
                return None
            begin, end = len(pairs), min(len(pairs) + BLOCK, total)
            seeds = range(CONFIRMATION_SEED + begin, CONFIRMATION_SEED + end)
            base = self._base(seeds)
            self._env.residual_scale = exported.residual_scale
            residual = evaluate(self._env, actor, seeds)
            pairs += zip(residual[RATE].tolist(), base[RATE].tolist(), strict=True)
        if deployment.policy == "base":
            set_residual_scale(self._folder.best_model, 0.0)
        return deployment


def unconfirmed(progress: Progress) -> Deployment:
    """What a run deploys that was interrupted."""
    policy: Literal["residual", "base"] = "residual" if progress.best_step else "base"
    return Deployment(policy, False, progress.best_step)


def _cannot_be_best(outcomes: list[float], best: list[float]) -> bool:
    """Whether a policy with the `outcomes` of the first episodes solves fewer than the best one even if it
    solves all others, or is significantly worse on these."""
    if sum(outcomes) + len(best) - len(outcomes) < sum(best):
        return True
    won, lost = won_and_lost(zip(outcomes, best, strict=False))
    return shows_gain(lost, won)


def _deployment(pairs: list[tuple[float, float]], step: int, total: int) -> Deployment | None:
    """The outcome after the episodes with the outcomes `pairs` of residual and base; None if it is open."""
    done = len(pairs)
    won, lost = won_and_lost(pairs)
    gain = shows_gain(won, lost)
    if not gain and not shows_gain(lost, won) and done < total and may_show_gain(won, lost, done, total):
        return None
    return Deployment(
        policy="residual" if gain else "base",
        confirmed=gain,
        step=step,
        episodes=done,
        max_episodes=total,
        success_rate=sum(residual for residual, _ in pairs) / done,
        base_success_rate=sum(base for _, base in pairs) / done,
        won=won,
        lost=lost,
        gain=(won - lost) / done,
        interval=gain_interval(won, lost, done - won - lost),
        e_value=math.exp(min(log_e_value(won, lost), 700.0)),  # a larger one would overflow
    )


def _metrics(episodes: Episodes) -> Metrics:
    # In float64: in float32 the mean of 95 successes in 100 episodes is below 0.95
    means = {name: float(values.double().mean()) for name, values in episodes.items()}
    return {
        "eval/success_rate": means.pop(RATE),
        "eval/mean_reward": means.pop("return"),
        "eval/mean_ep_length": means.pop("episode_length"),
        **{f"eval/{name}": value for name, value in means.items()},
    }


def _paired(episodes: Episodes, base: Episodes) -> Metrics:
    """The comparison with the base policy on the same episodes."""
    mine, theirs = episodes[RATE].tolist(), base[RATE].tolist()[: len(episodes[RATE])]
    won, lost = won_and_lost(zip(mine, theirs, strict=True))
    gain = paired_difference(dict(enumerate(mine)), dict(enumerate(theirs)), binary=True)
    assert gain.low is not None
    assert gain.high is not None
    return {
        "eval/episodes": len(mine),
        "eval/base_success_rate": sum(theirs) / len(theirs),
        "eval/gain": gain.mean,
        "eval/gain_low": gain.low,
        "eval/gain_high": gain.high,
        "eval/won": won,
        "eval/lost": lost,
    }
