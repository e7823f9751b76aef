"""The robot `so101_sim`: the simulated SO-101 of the task `so101-paper`, behind LeRobot's `Robot`."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.robots import Robot, RobotConfig
from lerobot.robots.utils import ensure_safe_goal_position
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from lerobot_policy_residual_rl.calibration import NeedsNoCalibration
from lerobot_policy_residual_rl.recording import Recording
from residual_rl.config import from_plain
from residual_rl.errors import ConfigError
from residual_rl.registry import TASKS, load
from residual_rl.robots.arm_driver import Pose
from residual_rl.tasks.so101_paper.hardware_units import HARDWARE
from residual_rl.tasks.so101_paper.simulated_arm import SimulatedArm

_log = logging.getLogger(__name__)
KEYS = tuple(f"{name}.pos" for name in HARDWARE.joint_names)
"""LeRobot's names of the joint positions, in order."""
ROBOTS: dict[str | None, SO101Sim] = {}
"""The connected robots of this process by id."""


@dataclass
class SimulatedCamera:
    """A camera of the scene."""

    width: int = 128
    height: int = 128
    fps: int = 30


@RobotConfig.register_subclass("so101_sim")
@dataclass(kw_only=True)
class SO101SimConfig(RobotConfig):
    """The simulated arm; its units are those of `so101_follower` (degrees, and the gripper from 0 to 100)."""

    # Seed of the first episode. Episode n of a dataset has seed + n, and one that is recorded again the next.
    seed: int = 0
    # End an episode of a recording when the task is solved, or at the task's limit of steps.
    end_episodes: bool = True
    # Move in wall time. Otherwise, each `send_action` is one policy step of the task, however long it takes.
    real_time: bool = False
    # Cameras of the scene: top, wrist, or scene.
    cameras: dict[str, SimulatedCamera] = field(default_factory=dict)
    # Largest distance of a goal position from the present one, as for `so101_follower`.
    max_relative_target: float | dict[str, float] | None = None
    # so101-paper or so101-paper-precise, and settings of it.
    task: str = "so101-paper"
    settings: dict[str, Any] = field(default_factory=dict)


class SO101Sim(NeedsNoCalibration, Robot):
    """The simulated arm with the sheet.

    Reward and success are methods, so that LeRobot does not record them as parts of the robot's state.
    """

    config_class = SO101SimConfig
    name = "so101_sim"

    def __init__(self, config: SO101SimConfig):
        super().__init__(config)
        self.config = config
        self.cameras = config.cameras
        self._arm: SimulatedArm | None = None
        self._recording = Recording(self._begin_episode)

    # --- LeRobot's interface ---

    @property
    def observation_features(self) -> dict[str, Any]:
        images = {name: (camera.height, camera.width, 3) for name, camera in self.cameras.items()}
        return {**dict.fromkeys(KEYS, float), **images}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(KEYS, float)

    @property
    def is_connected(self) -> bool:
        return self._arm is not None

    def connect(self, calibrate: bool = True) -> None:  # noqa: ARG002
        if self.is_connected:
            raise DeviceAlreadyConnectedError(f"{self} is already connected")
        if self.id in ROBOTS:
            raise DeviceAlreadyConnectedError(f"there is a simulated arm with the id {self.id!r} already")
        config, spec = self.config, TASKS.get(self.config.task)
        if spec.id not in ("so101-paper", "so101-paper-precise"):
            raise ConfigError(f"the robot so101_sim has no task {spec.id!r}")
        self._arm = SimulatedArm(
            from_plain(load(spec.config), {**spec.config_overrides, **config.settings}),
            config.seed,
            real_time=config.real_time,
            cameras={name: (camera.height, camera.width) for name, camera in self.cameras.items()},
        )
        self._arm.connect()
        self._arm.read()  # the first image takes long
        ROBOTS[self.id] = self
        logging.getLogger().addHandler(self._recording)

    def get_observation(self) -> dict[str, Any]:
        reading = self.arm.read()
        joints = HARDWARE.to_hardware(torch.from_numpy(reading.joint_position)).tolist()
        return {**dict(zip(KEYS, joints, strict=True)), **reading.images}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        arm = self.arm
        missing = [key for key in KEYS if key not in action]
        if missing:
            raise ConfigError(
                f"the action lacks {', '.join(missing)}; it has {', '.join(action) or 'nothing'}"
            )
        goal = {key: float(action[key]) for key in KEYS}
        if self.config.max_relative_target is not None:
            present = HARDWARE.to_hardware(torch.from_numpy(arm.read().joint_position)).tolist()
            pairs = {
                name: (goal[key], at)
                for name, key, at in zip(HARDWARE.joint_names, KEYS, present, strict=True)
            }
            safe = ensure_safe_goal_position(pairs, self.config.max_relative_target)
            goal = {f"{name}.pos": value for name, value in safe.items()}
        wanted = torch.tensor([goal[key] for key in KEYS], dtype=torch.float64)
        sent = arm.command(HARDWARE.from_hardware(wanted).numpy())
        if not self.config.real_time:
            arm.wait_until(arm.now() + arm.period)
        if self.config.end_episodes and (arm.success() or arm.num_steps >= arm.env.max_episode_steps):
            self._recording.end_episode()
        return dict(zip(KEYS, HARDWARE.to_hardware(torch.from_numpy(sent)).tolist(), strict=True))

    def disconnect(self) -> None:
        if self._arm is None:
            return
        logging.getLogger().removeHandler(self._recording)
        self._report()
        del ROBOTS[self.id]
        self._arm.disconnect()
        self._arm.close()
        self._arm = None

    # --- what only a simulation can do ---

    @property
    def arm(self) -> SimulatedArm:
        """The connected arm. Raises `DeviceNotConnectedError` without one."""
        if self._arm is None:
            raise DeviceNotConnectedError(f"{self} is not connected: call connect() first")
        return self._arm

    def reset(self, seed: int | None = None) -> None:
        """Begin the episode `seed`; default: the one that follows."""
        self._report()
        self.arm.reset(self.arm.seed + 1 if seed is None else seed)

    def object_pose(self) -> Pose:
        """Where the sheet is now, at the time `time.monotonic()`."""
        return dataclasses.replace(self.arm.sheet_pose(), time=time.monotonic())

    def reward(self) -> float:
        """The task's reward for the present state."""
        return self.arm.reward()

    def success(self) -> bool:
        """Whether the task is solved."""
        return self.arm.success()

    def end_episode(self, again: bool = False) -> None:
        """End the episode that LeRobot records, and with `again` drop it and record another in its place."""
        self._recording.end_episode(again)

    def _begin_episode(self, index: int, num_dropped: int) -> None:
        self.reset(self.config.seed + index + num_dropped)

    def _report(self) -> None:
        """Log the end of an episode, if it has begun."""
        steps = self.arm.num_steps
        if steps:
            outcome = "solved" if self.success() else "not solved"
            _log.info("%s: episode with seed %d: %s, %d steps", self, self.arm.seed, outcome, steps)
