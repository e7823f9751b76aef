"""Poses of the task's object for an arm without a simulator: checked, and read beside the control loop."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from residual_rl.errors import ArmError, ConfigError
from residual_rl.registry import load
from residual_rl.robots.arm_driver import Pose, PoseSource
from residual_rl.utils.text import one_line


def load_pose_source(name: str) -> PoseSource:
    """The pose source `module:callable`, which runs code of that module. Raises `ConfigError`."""
    source = load(name)
    if not callable(source):
        raise ConfigError(f"pose_source {name}: it must be a function without arguments that returns a Pose")
    return source


def checked_pose(pose: Any) -> Pose:
    """`pose`, with its quaternion at unit length.

    Raises:
        ArmError: it is no `Pose`, or its shapes or values cannot be right.
    """
    if not isinstance(pose, Pose):
        raise ArmError(f"the pose source returned {type(pose).__name__}; it must return a Pose or None")
    try:
        position = np.asarray(pose.position, np.float64)
        quaternion = np.asarray(pose.quaternion, np.float64)
        seen = float(pose.time)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArmError(f"the pose source returned values that are no numbers: {one_line(error)}") from None
    if position.shape != (3,) or quaternion.shape != (4,):
        raise ArmError(
            f"the pose source returned shapes {position.shape} and {quaternion.shape}; a position is [3] and"
            " a quaternion [4]"
        )
    if not (np.isfinite(position).all() and np.isfinite(quaternion).all() and np.isfinite(seen)):
        raise ArmError("the pose source returned NaN or infinity")
    norm = float(np.linalg.norm(quaternion))
    if abs(norm - 1.0) > 0.01:
        raise ArmError(f"the pose source returned a quaternion of length {norm:.3f}; it must be 1")
    return Pose(position, quaternion / norm, seen)


class BackgroundPoseSource:
    """Calls `source` again and again in a thread of its own, so that no control loop waits for a camera.

    Calling this object returns the latest pose at once, None before the first one. An exception in `source`
    is raised by the next call, as an `ArmError`.
    """

    def __init__(self, source: PoseSource, pause: float = 0.005):
        self._source = source
        self._pause = pause
        self._latest: Pose | None = None
        self._error: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pose source", daemon=True)
        self._thread.start()

    def __call__(self) -> Pose | None:
        if self._error is not None:
            raise ArmError(f"the pose source failed: {one_line(self._error)}") from self._error
        return self._latest

    def wait_for_first(self, timeout: float = 5.0) -> None:
        """Wait until an object was seen. Raises `ArmError` if none is within `timeout` [s]."""
        deadline = time.monotonic() + timeout
        while self() is None:
            if time.monotonic() > deadline:
                raise ArmError(f"the pose source has seen nothing within {timeout:g} s")
            time.sleep(0.01)

    def close(self, timeout: float = 1.0) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                pose = self._source()
                if pose is not None:
                    self._latest = checked_pose(pose)
            except Exception as error:  # noqa: BLE001 (code of the user's, whose errors the loop reports)
                self._error = error
                return
            time.sleep(self._pause)
