"""What commands a simulated arm in place of a leader arm: a policy, or a person at a keyboard or gamepad."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.robots.fingertip_leader import FingertipLeader
from residual_rl.tasks.so101_paper.simulated_arm import SimulatedArm

EVENTS = ("success", "terminate_episode", "rerecord_episode", "is_intervention")
"""LeRobot's names of the events of a teleoperator."""


class ArmOperator(ABC):
    """Commands a simulated arm, whose state it reads.

    Args:
        arm: the arm.
    """

    def __init__(self, arm: SimulatedArm):
        self.arm = arm

    @abstractmethod
    def joint_target(self) -> NDArray[np.float64]:
        """The joint targets [J] in [rad] to command now. Call it once per policy step."""

    def events(self) -> dict[str, bool]:
        """The `EVENTS`: the episode ends with success, or at its limit and is then to be recorded again."""
        success = self.arm.success()
        late = self.arm.num_steps >= self.arm.env.max_episode_steps
        return {
            "success": success,
            "terminate_episode": success or late,
            "rerecord_episode": late and not success,
            "is_intervention": False,
        }


class PolicyOperator(ArmOperator):
    """A base policy, which observes what it observes in training. After success it holds the last command.

    Args:
        arm: the arm.
        base_policy: id of the base policy; `model` for a run.
        cfg: its settings; None means the defaults.
    """

    def __init__(self, arm: SimulatedArm, base_policy: str, cfg: Any = None):
        super().__init__(arm)
        self._policy = make_base_policy(base_policy, cfg, arm.env)
        self._episode = arm.episode

    def joint_target(self) -> NDArray[np.float64]:
        if self.arm.episode != self._episode:
            self._episode = self.arm.episode
            self._policy.reset(torch.ones(1, dtype=torch.bool))
        if self.arm.success():
            return self.arm.last_target
        return self.arm.joint_target(self._policy.act(self.arm.observe())[0])


class FingertipOperator(ArmOperator):
    """A person, who moves the fingertip.

    Args:
        arm: the arm.
        read: what the person commands now: `move`, x, y and z of the fingertip's step [m]; `grip`, the share
            of its range by which the gripper opens; `end`, None or the `success`, `failure` or
            `rerecord_episode` with which the episode ends.
    """

    def __init__(self, arm: SimulatedArm, read: Callable[[], Mapping[str, Any]]):
        super().__init__(arm)
        assert arm.env.kinematics is not None
        self._leader = FingertipLeader(arm.env.kinematics, arm.joint_range)
        self._read = read
        self._moves = False
        self._end: str | None = None

    def joint_target(self) -> NDArray[np.float64]:
        command = self._read()
        self._moves = bool(any(command["move"]) or command["grip"])
        self._end = command["end"]
        if not self._moves:
            return self.arm.last_target
        low, high = self.arm.joint_range[-1]
        return self._leader.joint_target(
            self.arm.last_target, command["move"], command["grip"] * (high - low)
        )

    def events(self) -> dict[str, bool]:
        return {
            "success": self._end == "success" or self.arm.success(),
            "terminate_episode": self._end is not None or self.arm.success(),
            "rerecord_episode": self._end == "rerecord_episode",
            "is_intervention": self._moves,
        }
