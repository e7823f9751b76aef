"""Teleoperators of `so101_sim`: a leader driven by keyboard or gamepad, and a policy."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.teleoperators import Teleoperator, TeleoperatorConfig
from lerobot.teleoperators.utils import TeleopEvents
from lerobot.utils.errors import DeviceNotConnectedError

from lerobot_policy_residual_rl.calibration import NeedsNoCalibration
from lerobot_policy_residual_rl.robot import KEYS, ROBOTS, SO101Sim
from residual_rl.config import from_plain
from residual_rl.deployment.arm_operators import ArmOperator, FingertipOperator, PolicyOperator
from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.registry import BASE_POLICIES, load
from residual_rl.tasks.so101_paper.hardware_units import HARDWARE
from residual_rl.tasks.so101_paper.simulated_arm import SimulatedArm


@dataclass(kw_only=True)
class SO101SimOperatorConfig(TeleoperatorConfig):
    """What commands a simulated arm of the same process."""

    # `--robot.id` of the arm. It may be left out if there is only one.
    robot_id: str | None = None


@TeleoperatorConfig.register_subclass("so101_sim_leader")
@dataclass(kw_only=True)
class SO101SimLeaderConfig(SO101SimOperatorConfig):
    """Move the fingertip by keyboard or gamepad, with LeRobot's keys and buttons."""

    # keyboard or gamepad
    device: str = "keyboard"
    # Distance that the fingertip moves in one step [m].
    step_size: float = 0.004
    # Share of its range by which the gripper opens or closes in one step [%].
    gripper_step: float = 2.0


@TeleoperatorConfig.register_subclass("so101_sim_policy")
@dataclass(kw_only=True)
class SO101SimPolicyConfig(SO101SimOperatorConfig):
    """A base policy, or a run with `base_policy: model`, which observes what it observes in training."""

    # Id of the base policy, as for `residual-rl train --base-policy`.
    base_policy: str = "jacobian-yaw"
    # Its settings, as for `--base.SETTING`, e.g. "{checkpoint: runs/so101}".
    base: dict[str, Any] = field(default_factory=dict)
    # Record an episode again, with another seed, if it is not solved within the task's limit of steps.
    only_solved: bool = True


class SO101SimOperator(NeedsNoCalibration, Teleoperator):
    """Base class: the commands of an operator as LeRobot's actions and events."""

    config: SO101SimOperatorConfig

    def __init__(self, config: SO101SimOperatorConfig):
        super().__init__(config)
        self.config = config
        self._is_connected = False
        self._operator: ArmOperator | None = None

    @abstractmethod
    def _make_operator(self, arm: SimulatedArm) -> ArmOperator:
        """The operator of `arm`."""

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(KEYS, float)

    @property
    def feedback_features(self) -> dict[str, Any]:
        return {}

    @property
    def is_connected(self) -> bool:
        return self._is_connected

    def connect(self, calibrate: bool = True) -> None:  # noqa: ARG002
        self._is_connected = True

    def get_action(self) -> dict[str, Any]:
        robot, operator = self._connected()
        target = HARDWARE.to_hardware(torch.from_numpy(operator.joint_target()))
        events = operator.events()
        if events["terminate_episode"]:
            robot.end_episode(again=events["rerecord_episode"] and self._records_again)
        return dict(zip(KEYS, target.tolist(), strict=True))

    def get_teleop_events(self) -> dict[Any, bool]:
        """What LeRobot's RL asks: whether a person intervenes, and whether and how the episode ends."""
        events = self._connected()[1].events()
        return {event: events[event.value] for event in TeleopEvents if event.value in events}

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        pass

    def disconnect(self) -> None:
        self._is_connected = False
        self._operator = None

    @property
    def _records_again(self) -> bool:
        """Whether an episode that the operator gives up is recorded again."""
        return True

    def _connected(self) -> tuple[SO101Sim, ArmOperator]:
        """The robot `robot_id`, which may be connected after this teleoperator, and its operator."""
        if not self.is_connected:
            raise DeviceNotConnectedError(f"{self} is not connected: call connect() first")
        wanted = self.config.robot_id
        if wanted is None and len(ROBOTS) == 1:
            wanted = next(iter(ROBOTS))
        if wanted not in ROBOTS:
            ids = ", ".join(map(repr, ROBOTS)) or "none"
            raise DeviceNotConnectedError(
                f"{self} finds no connected so101_sim with the id {wanted!r}; there are: {ids}"
            )
        robot = ROBOTS[wanted]
        if self._operator is None or self._operator.arm is not robot.arm:
            self._operator = self._make_operator(robot.arm)
        return robot, self._operator


class SO101SimPolicy(SO101SimOperator):
    """A policy as teleoperator, to record demonstrations without hardware. After success it holds the arm."""

    config_class = SO101SimPolicyConfig
    name = "so101_sim_policy"
    config: SO101SimPolicyConfig

    @property
    def _records_again(self) -> bool:
        return self.config.only_solved

    def _make_operator(self, arm: SimulatedArm) -> PolicyOperator:
        spec = BASE_POLICIES.get(self.config.base_policy)
        cfg = from_plain(load(spec.config), self.config.base) if spec.config else None
        return PolicyOperator(arm, self.config.base_policy, cfg)


class SO101SimLeader(SO101SimOperator):
    """A person at a keyboard or gamepad, read by LeRobot's own controllers."""

    config_class = SO101SimLeaderConfig
    name = "so101_sim_leader"
    config: SO101SimLeaderConfig

    def __init__(self, config: SO101SimLeaderConfig):
        super().__init__(config)
        if config.device not in ("keyboard", "gamepad"):
            raise ConfigError(f"device must be keyboard or gamepad, not {config.device!r}")
        self._controller: Any = None

    def connect(self, calibrate: bool = True) -> None:
        from lerobot.teleoperators.gamepad import gamepad_utils

        kinds = {"keyboard": gamepad_utils.KeyboardController, "gamepad": gamepad_utils.GamepadController}
        size = self.config.step_size
        self._controller = kinds[self.config.device](x_step_size=size, y_step_size=size, z_step_size=size)
        try:
            self._controller.start()
        except ImportError as error:
            library = {"keyboard": "pynput", "gamepad": "pygame"}[self.config.device]
            raise MissingDependencyError(
                f"the {self.config.device}", f"`pip install {library}`, and a desktop session ({error})"
            ) from error
        super().connect(calibrate)

    def disconnect(self) -> None:
        if self._controller is not None:
            self._controller.stop()
            self._controller = None
        super().disconnect()

    def _make_operator(self, arm: SimulatedArm) -> FingertipOperator:
        return FingertipOperator(arm, self._read)

    def _read(self) -> dict[str, Any]:
        """What the person commands now; see `FingertipOperator`."""
        controller = self._controller
        controller.update()
        grip = {"open": 1.0, "close": -1.0, "stay": 0.0}[controller.gripper_command()]
        end = controller.get_episode_end_status()
        return {
            "move": controller.get_deltas(),
            "grip": 0.01 * self.config.gripper_step * grip,
            "end": None if end is None else getattr(end, "value", end),
        }
