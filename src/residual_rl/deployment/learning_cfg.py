"""Settings of a training on a robot. This module does not import torch, so that the command line's help stays
fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from residual_rl.deployment.arm_cfg import MAX_POSE_AGE
from residual_rl.errors import ConfigError
from residual_rl.utils.sensitive import CodeName, Sensitive
from residual_rl.utils.validation import CheckedCfg, NonNegativeFloat, PositiveFloat, PositiveInt

Operator = Annotated[str, Sensitive("code", lambda value: ":" in value)]


@dataclass(frozen=True)
class RobotCfg(CheckedCfg):
    """How a session on a robot is run. These settings are given anew for each session of a run."""

    sim: bool = False
    """Learn on the task's simulated arm, or in its env if it has none, in place of a robot of LeRobot's."""
    real_time: bool = True
    """The learner runs in its own process, and the loop never waits for it. `--no-real-time`, for `--sim`: as
    fast as this computer, with `utd` updates after each step, so that equal seeds give equal runs."""
    pose_source: CodeName = ""
    """`module:function` that returns the pose of the task's object, see the docs; a simulated arm has its
    own."""
    max_pose_age: PositiveFloat = MAX_POSE_AGE
    """Age of the last seen pose at which the arm is stopped [s]."""
    answer_timeout: PositiveFloat = 0.1
    """Longest time for an answer of the robot, its cameras included [s]."""
    start_speed: PositiveFloat = 0.5
    """Speed of the fastest joint on the way to the start of an episode [rad/s]."""
    operator: Operator = "keyboard"
    """The person who may end episodes and intervene: `keyboard` (in the terminal), `none`, or
    `module:function`, called with the env; see `residual_rl.deployment.operators.Operator`."""
    success_source: CodeName = ""
    """`module:function`, called with each observation: whether the task is solved, which ends the episode.
    Empty: the task's own criterion and the operator."""
    success_reward: NonNegativeFloat = 10.0
    """Reward of a success that the operator or `success_source` reports."""
    reset: Literal["prompt", "automatic"] = "prompt"
    """`prompt`: wait before each episode until the operator has prepared the scene."""
    weights_interval: PositiveFloat = 1.0
    """Longest time between two transfers of the learner's weights to the control loop [s]."""
    best_window: PositiveInt = 20
    """Number of episodes without interventions whose success rate selects `best_model`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sim and not self.real_time:
            raise ConfigError("a robot moves in real time: --no-real-time needs --sim")
        if self.sim and self.pose_source:
            raise ConfigError("a simulated arm is its own pose source: leave out --pose-source")
