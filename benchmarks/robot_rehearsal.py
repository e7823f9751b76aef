"""A scripted person for a rehearsal of `residual-rl train-robot` on the simulated arm.

export PYTHONPATH=benchmarks
residual-rl train-robot so101-paper --sim --operator robot_rehearsal:person --reset automatic
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.deployment.operators import NoOperator, Signals
from residual_rl.envs.vec_env import VecEnv
from residual_rl.types import Obs

EPISODES = 10
"""Number of episodes in which the person intervenes."""
STEPS = range(60, 180)
"""Steps in which they command."""


class Person(NoOperator):
    """Commands what the task's oracle would do, for four seconds in each of the first episodes."""

    def __init__(self, env: VecEnv):
        self._oracle = make_base_policy("jacobian-yaw", None, env)
        self._everywhere = torch.ones(1, dtype=torch.bool)
        self._episode = 0

    def signals(self, obs: Obs) -> Signals:
        step = int(obs["elapsed_steps"][0, 0])
        if step == 0:
            self._episode += 1
            self._oracle.reset(self._everywhere)
        if self._episode > EPISODES:
            return Signals()
        action = self._oracle.act(obs)[0]
        return Signals(action=action if step in STEPS else None)

    def prepare(self, should_stop: Callable[[], bool]) -> None:
        """The simulation resets the scene."""


def person(env: VecEnv) -> Person:
    """The operator."""
    return Person(env)
