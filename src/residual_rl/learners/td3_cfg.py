"""Settings of TD3, apart from its code so that the command line's help needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from residual_rl.learners.off_policy_cfg import OffPolicyCfg, require
from residual_rl.learners.sac_cfg import LOGGING, QUICK
from residual_rl.registry import LearnerSpec, register_learner


@dataclass(frozen=True)
class TD3Cfg(OffPolicyCfg):
    """Settings of TD3."""

    exploration_std: float = 0.3
    """Standard deviation of the exploration noise, in units of the residual's bound."""
    target_noise: float = 0.2
    """Standard deviation of the noise on the target's actions, which smooths the critics."""
    target_noise_clip: float = 0.5
    """That noise is clipped here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("exploration_std", "target_noise", "target_noise_clip"):
            require(self, name, getattr(self, name) >= 0.0, "0 or more")


register_learner(
    LearnerSpec(
        id="td3",
        summary="twin delayed DDPG: a deterministic residual with a replay buffer",
        config=f"{__name__}:TD3Cfg",
        make="residual_rl.learners.td3:TD3",
        make_policy="residual_rl.learners.td3:make_policy",
        quick_overrides=QUICK,
        train_overrides=LOGGING,
    )
)
