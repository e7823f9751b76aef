"""An arm behind the interface of a simulator, so that a task's env, policies and learners work on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.deployment.arm_cfg import MAX_POSE_AGE
from residual_rl.deployment.arm_quantities import arm_quantities, pose_quantities
from residual_rl.deployment.pose_source import checked_pose
from residual_rl.envs.task import Quantities, Task
from residual_rl.envs.task_env import TaskEnv
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ArmError, ConfigError
from residual_rl.robots.arm_driver import ArmDriver, ArmReading, Pose, PoseSource
from residual_rl.robots.kinematics import KinematicChain
from residual_rl.types import State

BeginEpisode = Callable[[Quantities], bool]
"""Brings the arm and the scene to the start of an episode, given its draws [1, …] by `Task.randomize`. False:
there is no further episode, and everything stays as it is."""


class ArmPhysics:
    """One arm as a `Physics` with B = 1: each step sends the joint targets and waits for the next reading.

    It reads `joint_position`, `joint_velocity` (finite differences) and `ee_position`, and of the task's
    object `NAME_position`, `NAME_quaternion` and `NAME_seen` [1], which is 0 where the pose is that of an
    earlier step. Steps keep the policy's rate on the driver's clock: the next
    reading is one period after the last one, however long the policy computed in between. After a step that
    took longer than a period, the schedule starts anew, so that lost time is not caught up.

    Args:
        driver: connected, and with limits of its own, see `GuardedArm`.
        kinematics: from the base to the tool.
        control_hz: policy steps per second [Hz].
        pose_source: poses of the task's object; None: the task needs none.
        pose_object: NAME of the object.
        max_pose_age: age of the last seen pose at which a step fails [s].
        begin_episode: the reset procedure; None: an episode starts where the arm is. It may be replaced
            between episodes.
    """

    num_envs = 1
    deterministic = False

    def __init__(
        self,
        driver: ArmDriver,
        kinematics: KinematicChain,
        control_hz: float,
        pose_source: PoseSource | None = None,
        pose_object: str | None = None,
        max_pose_age: float = MAX_POSE_AGE,
        begin_episode: BeginEpisode | None = None,
    ):
        names = driver.hardware.joint_names
        missing = [name for name in kinematics.joint_names if name not in names]
        if missing:
            raise ConfigError(f"the arm has no joint {missing[0]}; it has {', '.join(names)}")
        self.driver = driver
        self.device = torch.device("cpu")
        self.control_hz = control_hz
        self.begin_episode = begin_episode
        self._kinematics = kinematics
        self._pose_source = pose_source
        self._pose_object = pose_object
        self._max_pose_age = max_pose_age
        self._pose: Pose | None = None
        self._pose_is_new = False
        self._next = 0.0
        self.reading: ArmReading | None = None
        """The last reading."""
        self._velocity = np.zeros(len(names))

    @property
    def period(self) -> float:
        """Time between two steps [s]."""
        return 1.0 / self.control_hz

    def reset(self, env_ids: Tensor, episode: Quantities) -> None:
        """Run the reset procedure, which may block, and read where the arm is. Nothing else is commanded."""
        if not len(env_ids):
            return
        if self.begin_episode is not None and not self.begin_episode(episode):
            return
        self._pose = None
        self._observe(self.driver.read(), at_rest=True)
        self._next = self.driver.now()

    def step(self, joint_target: Tensor, env_ids: Tensor | None = None) -> Tensor | None:
        """Send `joint_target` [1, J], wait for the end of the period, and read.

        Returns the targets that were sent [1, J], which limits may have changed. Raises `ArmError`.
        """
        if env_ids is not None and not len(env_ids):
            return None
        sent = self.driver.command(joint_target[0].double().numpy())
        self._next += self.period
        now = self.driver.now()
        if now >= self._next:
            self._next = now + self.period
        self.driver.wait_until(self._next)
        self._observe(self.driver.read())
        return torch.as_tensor(sent, dtype=torch.float64)[None]

    def _observe(self, reading: ArmReading, at_rest: bool = False) -> None:
        last = self.reading
        self._velocity = np.zeros_like(reading.joint_position)
        if last is not None and not at_rest and reading.time > last.time:
            moved = reading.joint_position - last.joint_position
            self._velocity = moved / (reading.time - last.time)
        self.reading = reading
        if self._pose_object is None:
            return
        if self._pose_source is None:
            raise ArmError(f"the policy observes the pose of the {self._pose_object}: give a pose source")
        self._pose = self._seen_pose()

    def _seen_pose(self) -> Pose:
        """The pose of the object; where it is not seen now, the last one, for a limited time."""
        pose = self._pose_source() if self._pose_source is not None else None
        latest = self._pose if pose is None else checked_pose(pose)
        self._pose_is_new = latest is not None and (self._pose is None or latest.time > self._pose.time)
        if latest is None:
            raise ArmError(f"the pose source does not see the {self._pose_object}")
        age = self.driver.now() - latest.time
        if age < -self._max_pose_age:  # it would never be too old
            raise ArmError(f"the pose source gave a time {-age:.2f} s in the future, on the driver's clock")
        if age > self._max_pose_age:
            raise ArmError(
                f"the pose source has not seen the {self._pose_object} for {age:.2f} s (at most"
                f" {self._max_pose_age:g} s)"
            )
        return latest

    def read(self) -> Quantities:
        assert self.reading is not None
        position = torch.tensor(self.reading.joint_position, dtype=torch.float64)[None]
        velocity = torch.tensor(self._velocity, dtype=torch.float64)[None]
        names = self.driver.hardware.joint_names
        values = arm_quantities(position, velocity, names, self._kinematics)
        if self._pose_object is not None:
            values |= pose_quantities(self._pose_object, self._pose, self._pose_is_new, num_rows=1)
        return values

    @property
    def model(self) -> Any:
        raise ConfigError("an arm has no MuJoCo model")

    def scenes(self) -> Tensor:
        """[1, 0]: an arm has no scene to render; `render` gives the images of the last reading."""
        return torch.zeros(1, 0)

    def render(
        self,
        scenes: Tensor,
        cameras: Sequence[str],
        size: tuple[int, int],
        smooth: bool = False,  # noqa: ARG002
    ) -> dict[str, NDArray[np.uint8]]:
        """The last images [N, H, W, 3] of the `cameras`, in the size that the task observes."""
        assert self.reading is not None
        images = self.reading.images
        missing = [name for name in cameras if name not in images]
        if missing:
            raise ArmError(f"the arm has no camera {missing[0]!r}; it has {', '.join(images) or 'none'}")
        return {name: np.repeat(_resized(images[name], size)[None], len(scenes), 0) for name in cameras}

    def state_before(self) -> State:
        return self.state_dict()

    def state_dict(self) -> State:
        """The last reading, for a post-mortem. An arm cannot be put back into a state."""
        return {} if self.reading is None else {"joint_position": self.read()["joint_position"]}

    def load_state_dict(self, state: State) -> None:
        """An arm stays where it is."""

    def env_states(self) -> Quantities:
        return {}

    def set_env_states(self, env_ids: Tensor, states: Quantities) -> None:  # noqa: ARG002
        raise ConfigError("an arm cannot be put into a state of an earlier episode")

    def close(self) -> None:
        """The driver is closed by whoever connected it."""


def make_arm_env(
    simulated: VecEnv,
    driver: ArmDriver,
    pose_source: PoseSource | None = None,
    max_pose_age: float = MAX_POSE_AGE,
    begin_episode: BeginEpisode | None = None,
) -> TaskEnv:
    """The vec_env of an arm, B = 1: observations, actions, reward and rate of its `simulated` env.

    Raises:
        ConfigError: the env is not that of an arm whose actions command joint targets, or the joints of the
            driver are others.
    """
    kinematics, hardware = simulated.kinematics, simulated.hardware
    if not isinstance(simulated, TaskEnv) or kinematics is None or hardware is None:
        raise ConfigError("this task is not that of an arm with joint targets, such as so101-paper")
    if driver.hardware.joint_names != hardware.joint_names:
        raise ConfigError(
            f"the task's arm has the joints {', '.join(hardware.joint_names)}; this one has"
            f" {', '.join(driver.hardware.joint_names)}"
        )
    task: Task = simulated.task
    physics = ArmPhysics(
        driver, kinematics, simulated.control_hz, pose_source, task.pose_object, max_pose_age, begin_episode
    )
    env = TaskEnv(task, physics)
    env.kinematics = kinematics
    env.can_restore = False
    return env


def _resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """`image` [H, W, 3] in another size, averaged over the pixels that fall together."""
    if image.shape[:2] == size:
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BOX))
