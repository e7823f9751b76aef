"""A robot with LeRobot's methods, without LeRobot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
HOME_DEGREES = [0.0, -5.0, 10.0, 45.0, 0.0]


class FakeRobot:
    """Joints in degrees and a gripper in per cent, which reach their targets at once."""

    def __init__(self, **config: Any):
        self.config = SimpleNamespace(use_degrees=True, **config)
        self.positions = dict(zip((f"{n}.pos" for n in NAMES), [*HOME_DEGREES, 20.0], strict=True))
        self.action_features = dict.fromkeys(self.positions, float)
        self.is_calibrated = True
        self.sent: list[dict[str, float]] = []
        self.calls: list[str] = []
        self.bus = SimpleNamespace(disable_torque=lambda: self.calls.append("disable_torque"))
        self.spoil = lambda obs: obs
        self.cap = float("inf")

    def connect(self, calibrate: bool = True) -> None:
        assert not calibrate
        self.calls.append("connect")

    def get_observation(self) -> Any:
        return self.spoil({**self.positions, "top": np.zeros((4, 4, 3), np.uint8)})

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        sent = {
            key: float(np.clip(value, self.positions[key] - self.cap, self.positions[key] + self.cap))
            for key, value in action.items()
        }
        self.sent.append(sent)
        self.positions.update(sent)
        return sent

    def disconnect(self) -> None:
        self.calls.append("disconnect")
