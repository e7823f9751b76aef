"""Inverse kinematics towards the Cartesian goals of a task, for any arm that tells of itself.

Where actions are changes of the tool's pose, the way to the goal is commanded as it is, and the env's controller does the rest. Where they
are changes of joints, it is damped least squares on the Jacobian of the robot's URDF.
"""

from __future__ import annotations

from dataclasses import dataclass

from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.utils.validation import CheckedCfg, NonNegativeFloat, PositiveFloat


@dataclass(frozen=True)
class IKCfg(CheckedCfg):
    """Settings of the `ik` base policy."""

    gain: PositiveFloat = 1.5
    """Share of the way to the goal that is commanded each step; controllers that lag behind do with more than 1."""
    max_step: PositiveFloat = 0.1
    """Longest step that is commanded [m]."""
    max_turn: PositiveFloat = 0.3
    """Largest turn that is commanded in a step [rad]."""
    damping: NonNegativeFloat = 0.05
    """Damping of the least squares, where actions are changes of joints."""
    goals: str = ""
    """Goals of your own as MODULE:CLASS, a `CartesianGoals`; none are those registered for the task."""


register_base_policy(
    BasePolicySpec(
        id="ik",
        summary="inverse kinematics towards a task's Cartesian goals: reach, grasp, lift, move, release (ManiSkill)",
        make="residual_rl.base_policies.ik_policy:make",
        config=f"{__name__}:IKCfg",
    )
)
