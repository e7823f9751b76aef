"""How well a policy in training does its task: success in simulation on fixed seeds, without taking more than a share of the time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.config import from_plain
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.evaluation.evaluate import evaluate, no_residual
from residual_rl.registry import TASKS, load
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import BasePolicy, Metrics
from residual_rl.utils.seeding import TRAINING_EVAL_SEED

_log = logging.getLogger(__name__)


class SuccessEvaluation:
    """The worlds of the demonstrations' task, and the time that was spent in them.

    Args:
        task_id: as the demonstrations name it.
        task_settings: the settings of their worlds, as plain values.
        episodes: how many, each in a world of its own.
        num_threads: simulator threads; 0 means one a CPU core.
        share: most of the time that evaluations may take; time counts from here.
    """

    def __init__(self, task_id: str, task_settings: Mapping[str, Any], episodes: int, num_threads: int, share: float):
        try:
            spec = TASKS.get(task_id)
            cfg = from_plain(load(spec.config), dict(task_settings))
        except UnknownNameError as error:
            raise ConfigError(f"the demonstrations cannot be simulated here: {error}; train without by --eval-freq 0") from error
        self.env = load(spec.make)(cfg, episodes, num_threads, "cpu")
        self._seeds = range(TRAINING_EVAL_SEED, TRAINING_EVAL_SEED + episodes)
        self._share, self._begin = share, time.perf_counter()
        self._last, self._warned = 0.0, False
        self.spent = 0.0
        """Seconds spent in evaluations."""

    def check(self, policy: BasePolicy, action_dim: int) -> None:
        """Raise `ConfigError` where the worlds do not give what `policy` reads, or take other actions than its `action_dim` numbers."""
        self._executor(policy)
        if len(self.env.action_unit) != action_dim:
            raise ConfigError(f"the demonstrations' actions have {action_dim} numbers, and their task takes {len(self.env.action_unit)}")

    def affordable(self, step: int) -> bool:
        """Whether another one, as long as the last, would stay within the share. Says so in the log where not."""
        elapsed = time.perf_counter() - self._begin
        if self.spent + self._last <= self._share * (elapsed + self._last) or not self._last:
            return True
        if not self._warned:
            _log.warning(
                "evaluation at step %d left out, as others will be: one takes %.0f s, and they may take %.0f %% of the time (--eval-share)",
                step,
                self._last,
                100 * self._share,
            )
            self._warned = True
        return False

    def __call__(self, policy: BasePolicy) -> Metrics:
        """Run the episodes with a fresh `policy`; `eval/success_rate` and what else there is to tell."""
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
        """Free the worlds."""
        self.env.close()
