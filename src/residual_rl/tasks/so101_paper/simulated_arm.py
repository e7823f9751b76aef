"""The task's arm in simulation, behind the interface of a real one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.envs.task import Quantities
from residual_rl.envs.task_env import TaskEnv
from residual_rl.errors import ArmError, ConfigError, UnknownNameError
from residual_rl.robots.arm_driver import ArmReading, Pose
from residual_rl.tasks.so101_paper.config import SO101PaperCfg
from residual_rl.tasks.so101_paper.hardware_units import HARDWARE
from residual_rl.tasks.so101_paper.mujoco_env import TICK_STEPS, SO101PaperPhysics, make
from residual_rl.types import Obs

PERIOD_STEPS = sum(TICK_STEPS)
"""Physics steps between two policy steps."""
_AT_REST = 2.0
"""Longest time to simulate without a call [s]: an arm that has had no command for so long is at rest."""


class SimulatedArm:
    """One arm with the sheet, as an `ArmDriver` and a pose source.

    Its clock is simulated time: the arm moves while `wait_until` is called, as fast as the computer can. A
    `command` followed by `wait_until(now() + period)` is one policy step, so an episode equals that of the
    task's env with the same seed and joint targets bit for bit. With `real_time` its clock is wall time, and
    every call first catches up with it.

    Args:
        cfg: the task's settings.
        seed: seed of the first episode.
        real_time: move in wall time.
        cameras: the cameras of `read`, each with height and width of its images [px].
        clock: wall time [s].
        sleep: sleeps for a time [s].

    Raises:
        UnknownNameError: the scene has no such camera.
    """

    hardware = HARDWARE

    def __init__(
        self,
        cfg: SO101PaperCfg | None = None,
        seed: int = 0,
        *,
        real_time: bool = False,
        cameras: Mapping[str, tuple[int, int]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.env: TaskEnv = make(cfg or SO101PaperCfg(), 1, num_threads=1)
        """The task's env with B = 1, to fit a base policy to it; never step it."""
        assert isinstance(self.env.physics, SO101PaperPhysics)
        self._physics = self.env.physics
        self._task = self.env.task
        self._timestep = float(self._physics.model.opt.timestep)
        self.period = PERIOD_STEPS * self._timestep
        """Time between two policy steps [s]."""
        self._cameras = dict(cameras or {})
        for name in self._cameras:
            if name not in self.env.cameras:
                raise UnknownNameError("camera", name, self.env.cameras)
        self.joint_range = self._physics.model.actuator_ctrlrange.copy()
        """[J, 2]: lower and upper limits of the joint targets [rad]."""
        # The clocks
        self._real_time = real_time
        self._clock = clock
        self._sleep = sleep
        self._start = clock()
        self._steps = 0
        self._skipped = 0
        self._torque = True
        # The cable
        self._connected = False
        self._cable_ends_at = math.inf
        self.seed = seed
        """Seed of the episode."""
        self.episode = 0
        """Number of resets: it changes when another episode begins."""
        self.reset(seed)

    # --- the driver ---

    def connect(self) -> None:
        self._check_cable()
        self._connected = True

    @property
    def is_connected(self) -> bool:
        """Whether the arm is connected."""
        return self._connected

    def read(self) -> ArmReading:
        self._catch_up()
        self._check_connection()
        joint_position = self._physics.read()["joint_position"][0].numpy()
        scenes, images = self._physics.scenes(), {}
        for name, size in self._cameras.items():
            images[name] = self._physics.render(scenes, (name,), size)[name][0]
        return ArmReading(joint_position, self.now(), images)

    def command(self, joint_target: NDArray[np.float64]) -> NDArray[np.float64]:
        self._catch_up()
        self._check_connection()
        wanted = np.asarray(joint_target, np.float64)
        if wanted.shape != self.joint_range.shape[:1] or not np.isfinite(wanted).all():
            raise ArmError(f"joint targets must be {len(self.joint_range)} finite numbers, not {wanted}")
        sent = np.clip(wanted, *self.joint_range.T)
        self._set_torque(True)
        self._ramp = self._physics.commands(torch.from_numpy(sent[None]))[0]
        self._joint_target = torch.from_numpy(sent[None].copy())
        return sent

    def hold(self) -> None:
        self._catch_up()
        self.command(self._physics.read()["joint_position"][0].numpy())

    def torque_off(self) -> None:
        self._catch_up()
        self._check_connection()
        self._set_torque(False)

    def disconnect(self) -> None:
        self._connected = False

    def now(self) -> float:
        return self._clock() - self._start if self._real_time else self._simulated_time

    def wait_until(self, time: float) -> None:
        if not self._real_time:
            self._advance_to(time)
            return
        left = time - self.now()
        if left > 0:
            self._sleep(left)

    # --- what only a simulation can do ---

    def reset(self, seed: int) -> None:
        """Begin the episode `seed`: the arm at its home pose, the sheet where the seed puts it."""
        if seed < 0:
            raise ConfigError(f"the seed of an episode must not be negative, as {seed} is")
        if self._real_time:
            self._skipped = int(self.now() / self._timestep) - self._steps
        seeds = torch.tensor([seed])
        self.seed = seed
        self._episode = {**self._task.randomize(seeds), "seed": seeds}
        self._set_torque(True)
        self._physics.reset(torch.tensor([0]), self._episode)
        self._joint_target = self._physics.read()["joint_position"]
        self._action = torch.zeros(1, len(self._task.action_unit))
        self._ramp = self._joint_target.numpy()
        self._episode_start = self._steps
        self._hold_steps = torch.zeros(1, dtype=torch.int64)
        self.episode += 1

    def lose_cable(self, after: float = 0.0) -> None:
        """From `after` [s] on, the connection is lost: the servos keep their last command, and every method
        that needs the arm raises `ArmError`."""
        self._cable_ends_at = self.now() + after

    def plug_in(self) -> None:
        """End what `lose_cable` began; a `connect` is still needed."""
        self._cable_ends_at = math.inf
        self._connected = False

    def quantities(self) -> Quantities:
        """The task's quantities [1, …] at this instant; see `residual_rl.envs.task`."""
        self._catch_up()
        return {
            **self._physics.read(),
            **self._episode,
            "joint_target": self._joint_target,
            "action": self._action,
            "step": torch.tensor([self.num_steps]),
            "hold_steps": self._hold_steps,
            "success": self._hold_steps >= self._task.success_hold_steps,
        }

    def observe(self) -> Obs:
        """The task's observation [1, …] at this instant, with the images that its settings name."""
        obs, task = self._task.observe(self.quantities()), self._task
        if not task.obs_cameras:
            return obs
        images = self._physics.render(self._physics.scenes(), task.obs_cameras, task.image_size)
        return {**obs, **{name: torch.from_numpy(image) for name, image in images.items()}}

    def joint_target(self, action: Tensor) -> NDArray[np.float64]:
        """The joint targets [J] in [rad] that the task makes of an `action` [A] in [-1, 1], for `command`."""
        action = action[None].clamp(-1.0, 1.0)
        target = self._task.joint_target(action, self.quantities())
        self._action = action
        return target[0].numpy()

    @property
    def num_steps(self) -> int:
        """Policy steps since the episode began."""
        return (self._steps - self._episode_start) // PERIOD_STEPS

    @property
    def last_target(self) -> NDArray[np.float64]:
        """The last joint targets [J] in [rad]."""
        return self._joint_target[0].numpy().copy()

    def sheet_pose(self) -> Pose:
        """Where the sheet is now."""
        self._catch_up()
        q = self._physics.read()
        return Pose(q["sheet_position"][0].numpy(), q["sheet_quaternion"][0].numpy(), self.now())

    __call__ = sheet_pose

    def reward(self) -> float:
        """The task's reward for the state at this instant."""
        return float(sum(self._task.reward_terms(self.quantities()).values()))

    def success(self) -> bool:
        """Whether the task is solved: its condition has held for `success_hold_steps` policy steps."""
        self._catch_up()
        return bool(self._hold_steps[0] >= self._task.success_hold_steps)

    def close(self) -> None:
        """Free the renderers."""
        self._physics.close()

    # --- parts ---

    @property
    def _simulated_time(self) -> float:
        return (self._steps + self._skipped) * self._timestep

    def _catch_up(self) -> None:
        """In real time, simulate what has passed since the last call."""
        if not self._real_time:
            return
        now = self.now()
        if now - self._simulated_time > _AT_REST:
            self._skipped += int((now - self._simulated_time - _AT_REST) / self._timestep)
        self._advance_to(now)

    def _advance_to(self, time: float) -> None:
        steps = math.floor((time - self._simulated_time) / self._timestep + 1e-6)
        while steps > 0:
            # Stop at each policy step, where the task judges.
            part = min(steps, PERIOD_STEPS - (self._steps - self._episode_start) % PERIOD_STEPS)
            self._follow(part)
            steps -= part
            if (self._steps - self._episode_start) % PERIOD_STEPS == 0:
                q = {**self._physics.read(), **self._episode}
                self._hold_steps = (self._hold_steps + 1) * self._task.holds(q)

    def _follow(self, steps: int) -> None:
        """Move along the ramp to the last joint targets, and stay there."""
        commands, self._ramp = self._ramp[:steps], self._ramp[steps:]
        if len(commands) < steps:
            rest = self._joint_target.numpy().repeat(steps - len(commands), 0)
            commands = np.concatenate([commands, rest])
        self._physics.follow(commands[None])
        self._steps += steps

    def _set_torque(self, on: bool) -> None:
        """Turn the servos on or off."""
        if on == self._torque:
            return
        self._torque = on
        model = self._physics.model
        for name in ("actuator_gainprm", "actuator_biasprm"):
            self._physics.batch.expand(name)[0] = getattr(model, name) if on else 0.0

    def _check_cable(self) -> None:
        if self.now() >= self._cable_ends_at:
            raise ArmError("the connection to the simulated arm is lost: its cable is unplugged")

    def _check_connection(self) -> None:
        self._check_cable()
        if not self._connected:
            raise ArmError("the simulated arm is not connected: call connect() first")
