"""PPO settings that ManiSkill publishes for its tasks.

Source: `examples/baselines/ppo` of ManiSkill 3 for state observations, i.e. the defaults of `ppo.py` and the
changes for each task in `examples.sh` and `baselines.sh`. They are meant for plain reinforcement learning
with a thousand or more envs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublishedPPO:
    """The settings that differ between tasks."""

    num_steps: int = 50
    gamma: float = 0.8
    gae_lambda: float = 0.9
    entropy_coef: float = 0.0


COMMON: dict[str, Any] = {
    "num_epochs": 8,
    "learning_rate": 3e-4,
    "learning_rate_schedule": "constant",
    "hidden_sizes": (256, 256, 256),
    "target_kl": 0.1,
    "bootstrap_at_done": "always",
}
"""The settings common to all tasks, under this package's names.

ManiSkill's dense rewards are positive in each step and largest once a task is solved, so ending an episode at
success would be a loss without bootstrapping (`bootstrap_at_done`).
"""

_LOCOMOTION = PublishedPPO(num_steps=200, gamma=0.99, gae_lambda=0.95)
_STANDING = PublishedPPO(num_steps=100, gamma=0.99, gae_lambda=0.95)
_CARTPOLE = PublishedPPO(num_steps=250, gamma=0.99, gae_lambda=0.95)
_RUNNING = PublishedPPO(num_steps=200, gamma=0.97, entropy_coef=1e-3)

PUBLISHED: dict[str, PublishedPPO] = {
    "PushCube-v1": PublishedPPO(num_steps=20),
    "PokeCube-v1": PublishedPPO(num_steps=20),
    "PushT-v1": PublishedPPO(num_steps=100, gamma=0.99),
    "RollBall-v1": PublishedPPO(num_steps=80, gamma=0.95),
    "PegInsertionSide-v1": PublishedPPO(num_steps=100),
    "TwoRobotPickCube-v1": PublishedPPO(num_steps=100),
    "TwoRobotStackCube-v1": PublishedPPO(num_steps=100),
    "OpenCabinetDrawer-v1": PublishedPPO(num_steps=100),
    "UnitreeG1PlaceAppleInBowl-v1": PublishedPPO(num_steps=100),
    **{f"TriFingerRotateCubeLevel{level}-v1": PublishedPPO(num_steps=250) for level in range(5)},
    **{f"{robot}-v1": _LOCOMOTION for robot in ("AnymalC-Reach", "AnymalC-Spin", "UnitreeGo2-Reach")},
    **{f"{robot}-v1": _STANDING for robot in ("UnitreeH1Stand", "UnitreeG1Stand")},
    **{f"MS-{task}-v1": _CARTPOLE for task in ("CartpoleBalance", "CartpoleSwingUp")},
    **{f"MS-{task}-v1": _RUNNING for task in ("AntWalk", "AntRun", "HumanoidWalk", "HumanoidRun")},
    "MS-HumanoidStand-v1": PublishedPPO(num_steps=200, gamma=0.95),
}
"""Settings by task. PickCube-v1, StackCube-v1 and PickSingleYCB-v1 use `PublishedPPO()`."""


def train_overrides(env_id: str) -> dict[str, Any]:
    """PPO settings for a task, under this package's names. Unlisted tasks use those of PickCube-v1."""
    published = PUBLISHED.get(env_id, PublishedPPO())
    return {**COMMON, **vars(published)}
