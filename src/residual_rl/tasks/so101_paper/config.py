"""Settings of the task `so101-paper`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from residual_rl.errors import ConfigError
from residual_rl.utils.validation import (
    CheckedCfg,
    NonNegativeFloat,
    NonNegativeRange,
    Pixels,
    PositiveFloat,
    PositiveInt,
    PositiveRange,
    Range,
    Rule,
    Share,
    UnitInterval,
)

SHEET_HALF_SIZE = (0.074, 0.105, 0.000075)
"""Half of an A5 sheet of 0.15 mm thickness [m]; the long side is along y."""


_LowToHigh = Rule("a range from low to high", lambda pair: pair[0] <= pair[1])
Latency = Annotated[int, Interval(ge=0, le=30)]
LatencyRange = Annotated[tuple[Latency, Latency], _LowToHigh]
_Length = Annotated[int, Interval(ge=1, le=10_000)]
LengthRange = Annotated[tuple[_Length, _Length], _LowToHigh]


@dataclass(frozen=True)
class SO101PaperCfg(CheckedCfg):
    """Slide an A5 sheet into a taped rectangle with an SO-101 arm."""

    # --- the goal ---
    tolerance: PositiveFloat = 0.02
    """Margin between the sheet and the rectangle on each side [m]."""
    tape_center: tuple[float, float] = (0.22, 0.0)
    """Centre of the rectangle [m]; its long side lies along y."""
    success_hold_steps: PositiveInt = 10
    """Consecutive policy steps for which all four corners must be inside for success."""
    max_episode_steps: PositiveInt = 400
    """Policy steps after which an episode is truncated."""

    # --- the reward ---
    reward_mode: Literal["dense", "sparse"] = "dense"
    """`sparse`: only `reward_success`; `dense`: all of the terms below."""
    reward_success: float = 10.0
    """Reward for success, once."""
    reward_distance: float = -2.0
    """Reward per metre between the sheet's centre and the rectangle's, each step [1/m]."""
    reward_yaw: float = -0.1
    """Reward per radian of yaw error, each step [1/rad]."""
    reward_step: float = -0.01
    """Reward for each step."""
    reward_reach: float = 0.0
    """Reward per metre between fingertip and sheet centre, each step [1/m]; shaping for learning without a
    base policy."""

    # --- variation between episodes: every draw is a function of the episode's seed ---
    randomization: Literal["on", "off"] = "on"
    """`off` sets every quantity below to the middle of its range."""
    sheet_x: Range = (0.20, 0.35)
    """Start of the sheet's centre along x [m]."""
    sheet_y: Range = (-0.15, 0.15)
    """Start of the sheet's centre along y [m]."""
    sheet_yaw: Range = (-0.4, 0.4)
    """Start of the sheet's yaw [rad]."""
    friction_scale: PositiveRange = (0.8, 1.2)
    """Factor on all friction coefficients."""
    mass_scale: PositiveRange = (0.9, 1.1)
    """Factor on the sheet's mass."""

    # --- curriculum ---
    curriculum: Literal["none", "schedule", "success"] = "none"
    """Narrow the tolerance during training: over time (`schedule`), or whenever the success rate is high
    (`success`). Evaluation always uses `tolerance`."""
    curriculum_tolerance: PositiveFloat = 0.05
    """Tolerance at the start of a curriculum [m]."""
    curriculum_fraction: Share = 0.5
    """`schedule`: share of the training after which the final tolerance is reached."""
    curriculum_success_rate: Share = 0.9
    """`success`: success rate of the last 100 episodes at which the tolerance is narrowed by a tenth of the
    whole way, at most once per 100 episodes."""

    # --- the robot and its commands ---
    control_mode: Literal["joint_delta", "joint_target"] = "joint_delta"
    """Meaning of an action: a change of the joint targets, or absolute joint targets, with -1 to 1 covering
    each joint's range."""
    action_scale: PositiveFloat = 0.02
    """Change of a joint target per step that an action of 1 commands in `joint_delta`; base controllers keep
    to this limit in both modes [rad]."""
    max_target_step: PositiveFloat = 0.1
    """`joint_target`: largest change of a joint target in one step [rad]."""
    max_target_error: PositiveFloat = 0.2
    """Largest distance of the joint targets from the measured joint positions [rad]."""
    action_latency: Latency | LatencyRange = 0
    """Policy steps after which an action reaches the servos; 1 is 33 ms. Two numbers are a range of which
    each episode has one. Only for `joint_delta`."""
    servo: Literal["identified", "old"] = "identified"
    """Servo constants: kp 998.22 (newer identification) or kp 17.8 (older; the arm sags)."""
    servo_gain_scale: PositiveRange = (1.0, 1.0)
    """Factor on the position gain of each servo, drawn for each episode and joint; its logarithm is
    uniform."""
    joint_friction_scale: PositiveRange = (1.0, 1.0)
    """Factor on the dry and viscous friction of each joint, drawn for each episode and joint."""
    backlash: NonNegativeRange = (0.0, 0.0)
    """Play between each servo, with its encoder, and its link, drawn for each episode and joint [rad]."""
    robot_xml: str | None = None
    """MuJoCo model of the robot that replaces the built-in one; it must have the same joint names and a site
    `gripperframe`."""

    # --- observations ---
    position_noise: NonNegativeFloat = 0.0
    """Standard deviation of the noise on the observed positions of sheet and fingertip, drawn each step
    [m]."""
    angle_noise: NonNegativeFloat = 0.0
    """Standard deviation of the noise on the observed joint angles and sheet yaw, drawn each step [rad]."""
    pose_dropout: UnitInterval = 0.0
    """Probability, in each step, that the sheet's pose is lost for a while; the pose that was last seen is
    observed instead. It is seen in the first observation."""
    pose_dropout_steps: LengthRange = (5, 30)
    """Shortest and longest number of steps for which it is lost."""
    pose_latency: Latency | LatencyRange = 0
    """Policy steps after which the sheet's pose is observed. Two numbers are a range of which each episode
    has one."""
    observe_sheet_seen: bool = False
    """Also observe `sheet_seen`, as the last number of `state`: 1 if the observed pose was seen in its step,
    0 if it is an earlier one."""
    obs_mode: Literal["state", "rgb", "rgb+state"] = "state"
    """`rgb` adds camera images and omits `state`; the named quantities that base policies need are always
    present."""
    obs_cameras: tuple[str, ...] = ("top", "wrist")
    """Cameras whose images are observed."""
    camera_fovy: tuple[float, float] = (140.0, 140.0)
    """Vertical field of view of the cameras `top` and `wrist` [deg]; 70 for `top` crops to the workspace,
    four times as large."""
    image_size: tuple[Pixels, Pixels] = (128, 128)
    """Height and width of the images [px]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.action_latency not in (0, (0, 0)) and self.control_mode != "joint_delta":
            raise ConfigError(f"action_latency is for control_mode joint_delta, not {self.control_mode}")
        if self.curriculum != "none" and self.curriculum_tolerance < self.tolerance:
            raise ConfigError(
                f"curriculum_tolerance ({self.curriculum_tolerance}) must not be below "
                f"tolerance ({self.tolerance})"
            )
