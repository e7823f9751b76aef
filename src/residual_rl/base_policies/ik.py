"""The base policy `ik`: settings and registration.

It moves a tool towards the Cartesian goals of a task by inverse kinematics, for any arm that an env
describes.
"""

from __future__ import annotations

from dataclasses import dataclass

from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.sensitive import CodeName
from residual_rl.utils.validation import CheckedCfg, NonNegativeFloat, PositiveFloat


@dataclass(frozen=True)
class IKCfg(CheckedCfg):
    """Settings of the `ik` base policy."""

    gain: PositiveFloat = 1.5
    """Share of the distance to the goal that is commanded each step; controllers that lag behind tolerate
    more than 1."""
    max_step: PositiveFloat = 0.1
    """Longest commanded step [m]."""
    max_turn: PositiveFloat = 0.3
    """Largest commanded rotation in a step [rad]."""
    damping: NonNegativeFloat = 0.05
    """Damping of the least squares, for actions that are joint changes."""
    goals: CodeName = ""
    """A `CartesianGoals` class as MODULE:CLASS. Empty: the goals registered for the task."""


register_base_policy(
    BasePolicySpec(
        id="ik",
        summary=(
            "inverse kinematics towards a task's Cartesian goals: reach, grasp, lift, move, release "
            "(ManiSkill)"
        ),
        make="residual_rl.base_policies.ik_policy:make",
        config=f"{__name__}:IKCfg",
    )
)
