"""Settings of the task `gymnasium` and of the tasks for well-known packages of envs."""

from __future__ import annotations

from dataclasses import dataclass

from residual_rl.envs.gymnasium.config import GymnasiumEnvCfg
from residual_rl.utils.validation import NumEnvs


@dataclass(frozen=True)
class GymnasiumCfg(GymnasiumEnvCfg):
    """Any Gymnasium env with bounded continuous actions, in this or another Python environment."""

    eval_envs: NumEnvs = 16
    """Largest number of envs for evaluations, which have processes of their own. The results do not depend on
    it."""
