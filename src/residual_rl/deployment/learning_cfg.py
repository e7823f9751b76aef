"""Settings of a training on a robot. This module does not import torch, so that the command line's help stays
fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from residual_rl.utils.sensitive import CodeName, Sensitive
from residual_rl.utils.validation import CheckedCfg, NonNegativeFloat, PositiveFloat, PositiveInt

Operator = Annotated[str, Sensitive("code", lambda value: ":" in value)]


@dataclass(frozen=True)
class RobotCfg(CheckedCfg):
    """How a session on a robot is run. These settings are given anew for each session of a run."""

    simulation: Literal["arm", "env"] = "arm"
    """Without `--robot.type`: the task's arm in simulation, behind the interface of a real one, or the
    task's env."""
    pose_source: CodeName = ""
    """`MODULE:NAME`, called without arguments: poses of the task's object for an arm. A simulated arm has its
    own."""
    start_speed: PositiveFloat = 0.5
    """Speed of the fastest joint on the way to the start of an episode [rad/s]."""
    clock: Literal["real", "simulated"] = "real"
    """`real`: the learner runs in its own process, and the loop never waits for it. `simulated`: as fast as
    possible, with `utd` updates after each step, so that equal seeds give equal runs; for simulators."""
    operator: Operator = "keyboard"
    """The person who may end episodes and intervene: `keyboard` (in the terminal), `none`, or
    `MODULE:NAME`, called with the env; see `residual_rl.deployment.operators.Operator`."""
    success_source: CodeName = ""
    """`MODULE:NAME`, called with each observation: whether the task is solved, which ends the episode. Empty:
    the task's own criterion and the operator."""
    success_reward: NonNegativeFloat = 10.0
    """Reward of a success that the operator or `success_source` reports."""
    reset: Literal["prompt", "automatic"] = "prompt"
    """`prompt`: wait before each episode until the operator has prepared the scene."""
    weights_interval: PositiveFloat = 1.0
    """Longest time between two transfers of the learner's weights to the control loop [s]."""
    best_window: PositiveInt = 20
    """Number of episodes without interventions whose success rate selects `best_model`."""
