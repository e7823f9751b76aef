"""PickBox-v1: what differs from robot to robot."""

from __future__ import annotations

from dataclasses import dataclass

BASKET_FLOOR = 0.004
"""Thickness of the basket's floor and half of its walls' [m]."""


@dataclass(frozen=True)
class Layout:
    """Sizes and places for one robot, in [m] and [rad], in the world frame: the table top is at height
    0."""

    ready: tuple[float, ...]
    """Joint positions at the start: the gripper points down, over the table."""
    base: tuple[float, float, float] = (-0.615, 0.0, 0.0)
    """Where the robot stands."""
    box_half_size: float = 0.02
    """The boxes' nominal half size; each episode's is near it."""
    goal_thresh: float = 0.025
    """How far from the goal the centre of a box may lie."""
    spawn_center: tuple[float, float] = (0.0, -0.05)
    spawn_half_size: float = 0.1
    basket_center: tuple[float, float] = (0.0, 0.22)
    basket_spawn_half_size: float = 0.02
    """How far from its centre the basket may stand, along each axis."""
    basket_half_size: float = 0.04
    """Half of the basket's inner width."""
    rim_height: float = 0.04
    """Of the basket's walls above the table."""
    carry_clearance: float = 0.02
    """How far above the rim the bottom of a box is carried."""
    lowest_tool: float = 0.015
    """Height of the tool's centre point at which the fingers, pointing down, are just above the table."""
    camera_eye: tuple[float, float, float] = (0.35, 0.05, 0.55)
    camera_target: tuple[float, float, float] = (-0.05, 0.05, 0.0)
    hand_link: str | None = None
    """Carries a camera, where the robot brings none of its own."""


_PANDA = (0.0, 0.3927, 0.0, -1.9635, 0.0, 2.3562)  # ManiSkill's rest pose: π/8, -5π/8, 3π/4

LAYOUTS: dict[str, Layout] = {
    "a1_galaxea": Layout(
        ready=(0.0, 1.80746, -1.07128, 1.5708, -0.83462, 0.0, -0.01, -0.01),
        box_half_size=0.012,
        goal_thresh=0.015,
        spawn_center=(-0.255, -0.05),
        spawn_half_size=0.06,
        basket_center=(-0.255, 0.16),
        basket_half_size=0.024,
        rim_height=0.025,
        lowest_tool=0.02,
        camera_eye=(0.05, 0.05, 0.4),
        camera_target=(-0.28, 0.05, 0.0),
    ),
    "panda": Layout(ready=(*_PANDA, 0.7854, 0.04, 0.04), hand_link="panda_hand"),
    "panda_wristcam": Layout(ready=(*_PANDA, -0.7854, 0.04, 0.04)),
    "xarm6_robotiq": Layout(ready=(0.0, 0.22, -1.23, 0.0, 1.01, *[0.0] * 7), base=(-0.522, 0.0, 0.0)),
}
"""By ManiSkill's name of the robot."""
