"""Sizes and positions of PickBox-v1 for each robot."""

from __future__ import annotations

from dataclasses import dataclass

BASKET_FLOOR = 0.004
"""Thickness of the basket's floor and walls [m]."""


@dataclass(frozen=True)
class Layout:
    """Sizes and positions for one robot, in [m] and [rad], in the world frame; the table top is at z = 0."""

    ready: tuple[float, ...]
    """Initial joint positions: the gripper points down, above the table."""
    base: tuple[float, float, float] = (-0.615, 0.0, 0.0)
    """Position of the robot's base."""
    box_half_size: float = 0.02
    """Nominal half size of the box; episodes vary it."""
    goal_thresh: float = 0.025
    """Largest distance between the centre of the box and the goal for success."""
    spawn_center: tuple[float, float] = (0.0, -0.05)
    """Centre of the initial positions of the box."""
    spawn_half_size: float = 0.1
    """Largest distance of the box from `spawn_center` along each axis."""
    basket_center: tuple[float, float] = (0.0, 0.22)
    """Centre of the positions of the basket."""
    basket_spawn_half_size: float = 0.02
    """Largest distance of the basket from `basket_center` along each axis."""
    basket_half_size: float = 0.04
    """Half of the basket's inner width."""
    rim_height: float = 0.04
    """Height of the basket's rim above the table."""
    carry_clearance: float = 0.02
    """Distance between the rim and the bottom of the box while it is carried."""
    lowest_tool: float = 0.015
    """Height of the tool centre point at which the fingers, pointing down, are just above the table."""
    camera_eye: tuple[float, float, float] = (0.35, 0.05, 0.55)
    """Position of the camera `base_camera`."""
    camera_target: tuple[float, float, float] = (-0.05, 0.05, 0.0)
    """Point at which `base_camera` looks."""
    hand_link: str | None = None
    """Link for the camera `hand_camera`; None if the robot has this camera itself."""


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
"""Layouts by ManiSkill's robot uid."""
