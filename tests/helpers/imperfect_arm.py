"""Settings of `so101-paper` with all imperfections of a real arm."""

from __future__ import annotations

from typing import Any

EVERYTHING: dict[str, Any] = {
    "action_latency": (0, 2),
    "pose_latency": (1, 3),
    "pose_dropout": 0.05,
    "pose_dropout_steps": (2, 6),
    "observe_sheet_seen": True,
    "servo_gain_scale": (0.05, 1.0),
    "joint_friction_scale": (0.5, 2.0),
    "backlash": (0.01, 0.03),
}
