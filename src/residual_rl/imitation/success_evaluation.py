"""Evaluation of a policy during imitation training: success in simulation on fixed seeds, within a time
budget."""

from __future__ import annotations

import logging
import time

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.demos.reader import Demonstrations
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.evaluation.evaluate import evaluate, no_residual
from residual_rl.registry import TASKS, load
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import BasePolicy, Metrics
from residual_rl.utils.seeding import TRAINING_EVAL_SEED

_log = logging.getLogger(__name__)


class SuccessEvaluation:
    """The evaluation envs of the demonstrations' task, and a time budget.

    Args:
        demos: the demonstrations, whose task and settings are used.
        episodes: number of episodes, one per env.
        num_threads: simulator threads; 0 means OMP_NUM_THREADS, or else one per CPU core.
        share: maximum fraction of the time since construction that evaluations may take.

    Raises:
        ConfigError: the task cannot be simulated.
        ConsentError: see `Demonstrations.task_cfg`.
    """

    def __init__(self, demos: Demonstrations, episodes: int, num_threads: int, share: float):
        try:
            cfg = demos.task_cfg
        except (ConfigError, CheckpointError) as error:
            raise ConfigError(
                f"the demonstrations cannot be simulated here: {error}; disable evaluations with"
                " --eval-freq 0"
            ) from error
        spec = TASKS.get(demos.task_id)
        self.env = load(spec.make)(cfg, spec.eval_envs(episodes, cfg), num_threads, "cpu")
        self._seeds = range(TRAINING_EVAL_SEED, TRAINING_EVAL_SEED + episodes)
        self._share, self._begin = share, time.perf_counter()
        self._last, self._warned = 0.0, False
        self.spent = 0.0
        """Seconds spent in evaluations."""

    def check(self, policy: BasePolicy, action_dim: int) -> None:
        """Raise `ConfigError` if the envs lack observations of `policy`, or if their actions are not of size
        `action_dim`."""
        self._executor(policy)
        if len(self.env.action_unit) != action_dim:
            raise ConfigError(
                f"the demonstrations' actions have size {action_dim}, but those of their task have size"
                f" {len(self.env.action_unit)}"
            )

    def affordable(self, step: int) -> bool:
        """Whether another evaluation, of the duration of the last one, is within the budget. Logs a warning
        if it is not."""
        elapsed = time.perf_counter() - self._begin
        if self.spent + self._last <= self._share * (elapsed + self._last) or not self._last:
            return True
        if not self._warned:
            _log.warning(
                "evaluation at step %d skipped, and later ones may be: each takes %.0f s, and --eval-share"
                " limits them to %.0f %% of the time",
                step,
                self._last,
                100 * self._share,
            )
            self._warned = True
        return False

    def __call__(self, policy: BasePolicy) -> Metrics:
        """Evaluate `policy`, which must be in its initial state; returns `eval/success_rate` and other
        metrics."""
        begin = time.perf_counter()
        env = ResidualEnv(self.env, self._executor(policy), composition=0.0)
        episodes = evaluate(env, no_residual(env), self._seeds)
        self._last = time.perf_counter() - begin
        self.spent += self._last
        return {
            "eval/success_rate": float(episodes["success_once"].double().mean()),
            "eval/mean_reward": float(episodes["return"].double().mean()),
            "eval/mean_ep_length": float(episodes["episode_length"].double().mean()),
        }

    def _executor(self, policy: BasePolicy) -> BasePolicyExecutor:
        return BasePolicyExecutor(policy, self.env, "the policy in training")

    def close(self) -> None:
        """Close the envs."""
        self.env.close()
