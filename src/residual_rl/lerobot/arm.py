"""Any robot of LeRobot as an `ArmDriver`."""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from residual_rl.errors import ArmError, ConfigError
from residual_rl.lerobot.support import joint_features, quiet, require_lerobot
from residual_rl.lerobot.worker import Worker
from residual_rl.robots.arm_driver import ArmReading, Pose
from residual_rl.robots.hardware_units import HardwareUnits
from residual_rl.utils.text import listed, one_line

_CONNECT_TIMEOUT = 30.0
"""Time for the motors and cameras to be found [s]."""
_STOP_TIMEOUT = 0.1
"""Time for a stop to be confirmed [s]."""
_RECENT = 0.2
"""Age of a reading whose joint positions are held without another one [s]."""

_PACKAGES = {"scservo_sdk": "feetech-servo-sdk", "dynamixel_sdk": "dynamixel-sdk"}
"""The package of each module that LeRobot's extras for motors install."""


class LeRobotArm:
    """A `lerobot.robots.Robot` as an `ArmDriver`, on the clock `time.monotonic()`.

    Its calls run in a thread of their own, so that a bus or a camera that never answers cannot keep the
    program from its stop.

    Args:
        robot: not connected yet.
        hardware: names and units of its joints.
        answer_timeout: longest time for an answer [s].
    """

    def __init__(self, robot: Any, hardware: HardwareUnits, answer_timeout: float = 0.1):
        self.robot = robot
        self.hardware = hardware
        self._keys = joint_features(hardware)
        self._timeout = answer_timeout
        self._worker = Worker("LeRobot robot")
        self._last: ArmReading | None = None
        self._connected = False

    def connect(self) -> None:
        if getattr(getattr(self.robot, "config", None), "use_degrees", True) is False:
            raise ConfigError("the task's units are degrees: add --robot.use_degrees=true")
        missing = [key for key in self._keys if key not in self.robot.action_features]
        if missing:
            has = ", ".join(map(str, self.robot.action_features))
            raise ConfigError(f"the robot has no {listed(missing)}; it has {has}")
        self._connected = True
        self._call(lambda: self.robot.connect(calibrate=False), "connect", _CONNECT_TIMEOUT)
        if not self._call(lambda: self.robot.is_calibrated, "is_calibrated"):
            raise ArmError(
                "the arm is not calibrated: run `lerobot-calibrate` with the same --robot.* flags, --robot.id"
                " included"
            )

    def read(self) -> ArmReading:
        taken = self.now()
        obs = self._call(self.robot.get_observation, "get_observation")
        if not isinstance(obs, Mapping):
            raise ArmError(f"the arm gave {type(obs).__name__} in place of its observation by name")
        joints = self._joints(obs)
        images = {
            name: value
            for name, value in obs.items()
            if isinstance(value, np.ndarray) and value.ndim == 3 and name not in self._keys
        }
        reading = ArmReading(joints, taken, images)
        if self.hardware.is_plausible(torch.from_numpy(joints)):
            self._last = reading
        return reading

    def command(self, joint_target: NDArray[np.float64]) -> NDArray[np.float64]:
        sent = self._call(lambda: self._send(joint_target), "send_action")
        if not isinstance(sent, Mapping) or any(key not in sent for key in self._keys):
            return np.array(joint_target, np.float64)
        return self._joints(sent)

    def hold(self) -> None:
        # The last valid reading if it is recent, since another one takes time and may fail.
        if self._last is None or self.now() - self._last.time > _RECENT:
            self._last = None
            self.read()
        if self._last is None:
            raise ArmError("its readings are not valid, so that it keeps its last target")
        joints = self._last.joint_position
        self._call(lambda: self._send(joints), "hold", _STOP_TIMEOUT)

    def torque_off(self) -> None:
        disable = _torque_switch(self.robot)
        if disable is None:
            raise ArmError(f"{type(self.robot).__name__} has no way to turn its torque off: hold it instead")
        self._call(disable, "torque off", _STOP_TIMEOUT)

    def disconnect(self) -> None:
        if self._connected:
            self._connected = False
            try:
                self._call(self.robot.disconnect, "disconnect", 2.0)
            finally:
                self._worker.close()

    def now(self) -> float:
        return time.monotonic()

    def wait_until(self, time: float) -> None:
        left = time - self.now()
        if left > 0:
            _sleep(left)

    @property
    def simulated(self) -> bool:
        """Whether the robot is a simulated one, with `reset(seed)` and `object_pose()` of its own."""
        return hasattr(self.robot, "reset") and hasattr(self.robot, "object_pose")

    def reset(self, seed: int) -> None:
        """Begin the episode `seed` of a simulated robot."""
        self._call(lambda: self.robot.reset(seed), "reset", 10.0)

    def object_pose(self) -> Pose:
        """The pose of the task's object, from a simulated robot."""
        pose: Pose = self._call(self.robot.object_pose, "object_pose")
        return pose

    # --- parts ---

    def _call(self, function: Any, what: str, timeout: float | None = None) -> Any:
        return self._worker.call(function, what, self._timeout if timeout is None else timeout)

    def _send(self, joint_target: NDArray[np.float64]) -> Any:
        values = self.hardware.clip(self.hardware.to_hardware(torch.from_numpy(np.array(joint_target))))
        return self.robot.send_action(dict(zip(self._keys, values.tolist(), strict=True)))

    def _joints(self, obs: Mapping[str, Any]) -> NDArray[np.float64]:
        """The joint positions [J] in [rad] of an observation or action."""
        missing = [key for key in self._keys if key not in obs]
        if missing:
            raise ArmError(f"the arm gave no {listed(missing)}; it gave {listed(obs) or 'nothing'}")
        values = []
        for key in self._keys:
            try:
                values.append(float(obs[key]))
            except (TypeError, ValueError, OverflowError, RuntimeError) as error:
                raise ArmError(f"the arm gave no number for {key}: {one_line(error)}") from None
        return np.asarray(self.hardware.from_hardware(torch.tensor(values, dtype=torch.float64)).numpy())


def _sleep(left: float) -> None:
    time.sleep(left)


def _torque_switch(robot: Any) -> Any:
    """The function of a robot that turns its torque off; None if it has none."""
    bus = getattr(robot, "bus", None)
    return getattr(robot, "torque_off", None) or getattr(bus, "disable_torque", None)


def make_lerobot_arm(
    words: Sequence[str], hardware: HardwareUnits, at_exit: str, answer_timeout: float = 0.1
) -> LeRobotArm:
    """The robot that LeRobot's own flags describe, e.g. `--robot.type=so101_follower --robot.port=…`.

    Args:
        words: the flags, parsed by LeRobot.
        hardware: names and units of the task's joints.
        at_exit: `torque-off`, or `hold`: then the torque stays on when the robot is disconnected, whatever
            its own setting `disable_torque_on_disconnect` says.
        answer_timeout: longest time for an answer [s].

    Raises:
        MissingDependencyError: LeRobot is not installed.
        ConfigError: unknown type or flag, or `torque-off` for a robot that cannot do it.
    """
    require_lerobot("--robot.type")
    config = _parse(words)
    if hasattr(config, "disable_torque_on_disconnect"):
        config.disable_torque_on_disconnect = at_exit == "torque-off"
    from lerobot.robots import make_robot_from_config

    try:
        with quiet():
            robot = make_robot_from_config(config)
    except Exception as error:
        package = _PACKAGES.get(getattr(error, "name", None) or "")
        fix = f"; pip install {package}" if package else ""
        raise ConfigError(f"LeRobot cannot make this robot: {one_line(error)}{fix}") from error
    if at_exit == "torque-off" and _torque_switch(robot) is None:
        raise ConfigError(f"robot {config.type} has no way to turn its torque off: use --at-exit hold")
    return LeRobotArm(robot, hardware, answer_timeout)


def _parse(words: Sequence[str]) -> Any:
    """The config of the robot that the flags describe."""
    import draccus
    from lerobot.robots import RobotConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    # Importing a module of a robot or camera registers its flags; those whose libraries are missing are
    # unknown types.
    with quiet():
        packages = ("lerobot.robots", "lerobot.cameras")
        missing = [text for package in packages for text in _import_all(package)]
        register_third_party_plugins()
    hint = f" (not available: {'; '.join(missing)})" if missing else ""
    kind = next((w.partition("=")[2] or after for w, after in _pairs(words) if "--robot.type" in w), "")
    known = RobotConfig.get_known_choices()
    if kind not in known:
        raise ConfigError(f"unknown robot type {kind!r}; LeRobot knows {', '.join(sorted(known))}{hint}")
    flags = make_dataclass("RobotFlags", [("robot", RobotConfig)])
    try:
        parsed = draccus.parse(flags, args=list(words), exit_on_error=False)
    except SystemExit:  # it has printed the reason
        raise ConfigError(f"LeRobot refuses the flags of robot {kind}: see above") from None
    except Exception as error:
        raise ConfigError(f"LeRobot refuses the flags of robot {kind}: {one_line(error)}{hint}") from error
    return parsed.robot


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(words, [*words[1:], ""], strict=True))


def _import_all(package: str) -> list[str]:
    """Import the subpackages of `package`; returns those that cannot be, each with its reason."""
    failed = []
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.ispkg:
            try:
                importlib.import_module(f"{package}.{module.name}")
            except Exception as error:  # noqa: BLE001 (libraries of hardware fail in many ways)
                failed.append(f"{module.name}: {one_line(error, 80)}")
    return failed
