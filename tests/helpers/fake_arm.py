"""An arm without physics on a clock of its own, which can fail in every way that a real one can."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from residual_rl.errors import ArmError
from residual_rl.robots.arm_driver import ArmReading, Pose
from residual_rl.tasks.so101_paper.hardware_units import HARDWARE
from residual_rl.tasks.so101_paper.robot import HOME

IN_PLACE = np.array([0.22, 0.0, 0.001])
AWAY = np.array([0.3, 0.1, 0.001])


class FakeArm:
    """Joints that reach their target one wait later; time passes only in `wait_until`.

    `corrupt` changes or replaces each reading; `log` has the calls with their times.
    """

    hardware = HARDWARE

    def __init__(self, start: NDArray[np.float64] | None = None):
        self.joints = np.array(HOME if start is None else start, np.float64)
        self.target = self.joints.copy()
        self.time = 100.0
        self.log: list[tuple[str, float]] = []
        self.commands: list[NDArray[np.float64]] = []
        self.corrupt: Callable[[ArmReading], object] = lambda reading: reading
        self.lost = False
        self.on_wait: Callable[[], None] = lambda: None
        self.sheet = AWAY

    def _call(self, name: str) -> None:
        self.log.append((name, self.time))
        if self.lost:
            raise ArmError("the cable is lost")

    def connect(self) -> None:
        self._call("connect")

    def read(self) -> ArmReading:
        self._call("read")
        image = np.full((4, 6, 3), len(self.log) % 256, np.uint8)  # a real camera's noise
        return self.corrupt(ArmReading(self.joints.copy(), self.time, {"top": image}))  # type: ignore[return-value]

    def command(self, joint_target: NDArray[np.float64]) -> NDArray[np.float64]:
        self._call("command")
        self.target = joint_target.copy()
        self.commands.append(self.target)
        return self.target

    def hold(self) -> None:
        self._call("hold")

    def torque_off(self) -> None:
        self._call("torque_off")

    def disconnect(self) -> None:
        self.log.append(("disconnect", self.time))

    def now(self) -> float:
        return self.time

    def wait_until(self, time: float) -> None:
        self.on_wait()
        if time > self.time:
            self.time = time
            self.joints = self.target.copy()

    def sheet_pose(self) -> Pose:
        """The sheet, parallel to the rectangle."""
        return Pose(self.sheet, np.array([1.0, 0.0, 0.0, 0.0]), self.time)

    def calls(self, name: str) -> int:
        """How often a method was called."""
        return sum(called == name for called, _ in self.log)


def with_joints(reading: ArmReading, joints: object) -> ArmReading:
    """`reading` with other joint positions, of any kind."""
    return dataclasses.replace(reading, joint_position=joints)  # type: ignore[arg-type]
