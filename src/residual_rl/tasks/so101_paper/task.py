"""The task's observation, reward, success and randomisation, on batched tensors of named quantities.

The physics provides `joint_position` and `joint_velocity` [B, 6], `ee_position` [B, 3], `sheet_position`
[B, 3] and `sheet_quaternion` [B, 4] (w, x, y, z), in [m] and [rad], in the frame of the robot's base.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from residual_rl.envs.task import Quantities, Task
from residual_rl.tasks.so101_paper.config import SHEET_HALF_SIZE, SO101PaperCfg
from residual_rl.tasks.so101_paper.hardware_units import HARDWARE
from residual_rl.tasks.so101_paper.robot import HOME
from residual_rl.types import Obs
from residual_rl.utils.seeding import normal, uniform

STATE = ("joint_position", "joint_velocity", "sheet_pose", "goal", "ee_position")
"""The parts of `state` [25], in order."""
ENVIRONMENT_STATE = (*STATE, "joint_target")
"""The parts of LeRobot's `observation.environment_state` [31], in order."""
SUCCESS_WINDOW = 100
"""Number of episodes in the success rate; as many must end after a change of tolerance to make it valid."""


def yaw_of(quat: Tensor) -> Tensor:
    """Yaw [...] in [rad] of quaternions (w, x, y, z) [..., 4]."""
    w, x, y, z = quat.unbind(-1)
    return torch.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def quaternion_product(a: Tensor, b: Tensor) -> Tensor:
    """The rotation `b` [..., 4] followed by `a` [..., 4], as quaternions (w, x, y, z)."""
    (aw, ax, ay, az), (bw, bx, by, bz) = a.unbind(-1), b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def wrap_half_turn(angle: Tensor) -> Tensor:
    """`angle` modulo π, in [-π/2, π/2), because a rectangle is symmetric under rotation by 180°."""
    return torch.remainder(angle + math.pi / 2, math.pi) - math.pi / 2


def corners(position: Tensor, yaw: Tensor) -> Tensor:
    """The sheet's corners [B, 4, 2] in [m] for its centre [B, 2 or 3] and yaw [B]."""
    x, y = SHEET_HALF_SIZE[:2]
    local = position.new_tensor([[x, y], [x, -y], [-x, -y], [-x, y]])
    c, s = yaw.cos()[:, None], yaw.sin()[:, None]
    turned = torch.stack([c * local[:, 0] - s * local[:, 1], s * local[:, 0] + c * local[:, 1]], -1)
    return position[:, None, :2] + turned


class SO101Paper(Task):
    """Slide the sheet into the rectangle by pressing a fingertip on it and dragging.

    With `control_mode` `joint_delta`, an action is the change of the six joint targets in units of
    `action_scale`. It is added to the targets and not to the measured positions, or the arm would sag to the
    table. With `joint_target`, an action gives the targets themselves.

    Args:
        cfg: the task's settings.
        joint_range: [6, 2] lower and upper joint limits [rad].
    """

    def __init__(self, cfg: SO101PaperCfg, joint_range: Tensor):
        self.cfg = cfg
        self.obs_cameras = () if cfg.obs_mode == "state" else cfg.obs_cameras
        self.image_size = cfg.image_size
        self.max_episode_steps = cfg.max_episode_steps
        self.success_hold_steps = cfg.success_hold_steps
        self._joint_low, self._joint_high = joint_range.unbind(1)
        self._joint_middle = 0.5 * (self._joint_low + self._joint_high)
        self._joint_half = 0.5 * (self._joint_high - self._joint_low)
        self.joint_step = torch.full((len(joint_range),), cfg.action_scale, device=joint_range.device)
        self.action_unit = self.joint_step
        if cfg.control_mode == "joint_target":  # a residual of 1 is the largest step of a target
            self.action_unit = self._joint_half.float()
            self.residual_unit = (cfg.max_target_step / self._joint_half).float()
        self.hardware = HARDWARE
        self.environment_state = ENVIRONMENT_STATE
        self.pose_object = "sheet"
        self.action_delay = cfg.action_latency
        self._home = joint_range.new_tensor(HOME)
        self._goal = joint_range.new_tensor(cfg.tape_center)
        self._extent = joint_range.new_tensor(SHEET_HALF_SIZE[:2])
        self.tolerance = cfg.tolerance
        """Tolerance of new episodes [m]. Only training calls `set_training_progress`, which changes it."""
        self._narrowed_at = 0
        """Number of ended episodes when the curriculum `success` last narrowed the tolerance."""

    def observation_space(self) -> spaces.Dict:
        joint_low, joint_high = self._joint_low.cpu().numpy(), self._joint_high.cpu().numpy()
        slack = 0.2  # joint limits are soft
        pose = np.array([10.0] * 3 + [1.0] * 4)  # wide enough for a sheet that falls off the table
        away = np.array([10.0, 10.0, math.pi / 2])
        bounds = {
            "joint_position": (joint_low - slack, joint_high + slack),
            "joint_velocity": (np.full(6, -50.0), np.full(6, 50.0)),
            "joint_target": (joint_low, joint_high),
            "ee_position": (np.full(3, -1.0), np.full(3, 1.0)),
            "sheet_pose": (-pose, pose),
            "goal": (-away, away),
        }
        if self.cfg.obs_mode != "rgb":
            low, high = zip(*(bounds[name] for name in STATE), strict=True)
            bounds["state"] = np.concatenate(low), np.concatenate(high)
        return spaces.Dict(
            {
                name: spaces.Box(low.astype(np.float32), high.astype(np.float32))
                for name, (low, high) in bounds.items()
            }
        )

    def randomize(self, seed: Tensor) -> Quantities:
        cfg = self.cfg
        ranges = [cfg.sheet_x, cfg.sheet_y, cfg.sheet_yaw, cfg.friction_scale, cfg.mass_scale]
        share = uniform(seed, stream=0, n=len(ranges))
        if cfg.randomization == "off":
            share = torch.full_like(share, 0.5)
        low, high = share.new_tensor(ranges).unbind(1)
        x, y, yaw, friction, mass = (low + share * (high - low)).unbind(1)
        return {
            "start_position": torch.stack([x, y], 1),
            "start_yaw": yaw,
            "friction_scale": friction,
            "mass_scale": mass,
            "start_joint_position": self._home.expand(len(x), -1),
            "tolerance": torch.full_like(x, self.tolerance),
        }

    def joint_target(self, action: Tensor, q: Quantities) -> Tensor:
        reach, step = self.cfg.max_target_error, self.cfg.max_target_step
        if self.cfg.action_latency:
            action = q["action"]  # the previous action
        if self.cfg.control_mode == "joint_delta":
            target = q["joint_target"] + action * self.cfg.action_scale
        else:
            wanted = self._joint_middle + action * self._joint_half
            target = wanted.maximum(q["joint_target"] - step).minimum(q["joint_target"] + step)
        target = target.maximum(q["joint_position"] - reach).minimum(q["joint_position"] + reach)
        return target.maximum(self._joint_low).minimum(self._joint_high)

    def targets_to_actions(self, targets: Tensor, obs: Obs) -> Tensor:
        targets = targets.double()
        if self.cfg.control_mode == "joint_target":
            return ((targets - self._joint_middle) / self._joint_half).clamp(-1.0, 1.0).float()
        at, actions = obs["joint_target"].double(), []
        for target in targets.unbind(1):
            actions.append(((target - at) / self.cfg.action_scale).clamp(-1.0, 1.0))
            at = at + actions[-1] * self.cfg.action_scale
        return torch.stack(actions, 1).float()

    def actions_to_targets(self, actions: Tensor, obs: Obs) -> Tensor:
        actions = actions.double()
        if self.cfg.control_mode == "joint_target":
            return self._joint_middle + actions * self._joint_half
        at, targets = obs["joint_target"].double(), []
        for action in actions.unbind(1):
            at = (at + action * self.cfg.action_scale).maximum(self._joint_low).minimum(self._joint_high)
            targets.append(at)
        return torch.stack(targets, 1)

    def _errors(self, q: Quantities) -> tuple[Tensor, Tensor]:
        """Offset from the sheet to the goal [B, 2] [m], and the sheet's yaw from the goal's [B] [rad]."""
        return self._goal - q["sheet_position"][:, :2], wrap_half_turn(yaw_of(q["sheet_quaternion"]))

    def observe(self, q: Quantities) -> Obs:
        q = self._with_sensor_noise(q)
        offset, yaw = self._errors(q)
        named = {
            "joint_position": q["joint_position"],
            "joint_velocity": q["joint_velocity"],
            "joint_target": q["joint_target"],
            "ee_position": q["ee_position"],
            "sheet_pose": torch.cat([q["sheet_position"], q["sheet_quaternion"]], 1),
            "goal": torch.cat([offset, -yaw[:, None]], 1),
        }
        return self.with_joined({name: value.float() for name, value in named.items()})

    def with_joined(self, named: Obs) -> Obs:
        if self.cfg.obs_mode == "rgb":
            return named
        state = [named[n] for n in STATE]
        return {"state": torch.cat(state, 1), **named}

    def _with_sensor_noise(self, q: Quantities) -> Quantities:
        """The quantities with sensor noise, which is a function of the episode's seed and step."""
        cfg = self.cfg
        if not cfg.position_noise and not cfg.angle_noise:
            return q
        # Three numbers for the sheet, three for the fingertip, six for the joints, one for the yaw.
        noise = normal(q["seed"], stream=1 + q["step"], n=13)
        half = 0.5 * cfg.angle_noise * noise[:, 12]
        turn = torch.stack([half.cos(), torch.zeros_like(half), torch.zeros_like(half), half.sin()], 1)
        return {
            **q,
            "sheet_position": q["sheet_position"] + cfg.position_noise * noise[:, :3],
            "ee_position": q["ee_position"] + cfg.position_noise * noise[:, 3:6],
            "joint_position": q["joint_position"] + cfg.angle_noise * noise[:, 6:12],
            "sheet_quaternion": quaternion_product(turn, q["sheet_quaternion"]),
        }

    def holds(self, q: Quantities) -> Tensor:
        limit = self._extent + q["tolerance"][:, None]
        away = (corners(q["sheet_position"], yaw_of(q["sheet_quaternion"])) - self._goal).abs()
        return (away <= limit[:, None]).flatten(1).all(1)

    def reward_terms(self, q: Quantities) -> dict[str, Tensor]:
        cfg = self.cfg
        offset, yaw = self._errors(q)
        if cfg.reward_mode == "sparse":
            return {"success": cfg.reward_success * q["success"]}
        terms = {
            "success": cfg.reward_success * q["success"],
            "distance": cfg.reward_distance * offset.norm(dim=1),
            "yaw": cfg.reward_yaw * yaw.abs(),
            "step": torch.full_like(yaw, cfg.reward_step),
        }
        if cfg.reward_reach:
            terms["reach"] = cfg.reward_reach * (q["ee_position"] - q["sheet_position"]).norm(dim=1)
        return terms

    def metrics(self, q: Quantities) -> dict[str, Tensor]:
        offset, yaw = self._errors(q)
        return {"dist_to_goal": offset.norm(dim=1), "yaw_error": yaw.abs()}

    def set_training_progress(self, fraction: float, success_rate: float, episodes: int) -> dict[str, float]:
        cfg = self.cfg
        if cfg.curriculum == "none":
            return {}
        if cfg.curriculum == "schedule":
            left = max(1.0 - fraction / cfg.curriculum_fraction, 0.0)
            self.tolerance = cfg.tolerance + left * (cfg.curriculum_tolerance - cfg.tolerance)
        elif fraction == 0.0:
            self.tolerance, self._narrowed_at = cfg.curriculum_tolerance, 0
        elif success_rate >= cfg.curriculum_success_rate and episodes - self._narrowed_at >= SUCCESS_WINDOW:
            self._narrowed_at = episodes
            self.tolerance = max(
                self.tolerance - 0.1 * (cfg.curriculum_tolerance - cfg.tolerance), cfg.tolerance
            )
        return {"curriculum/tolerance": self.tolerance}

    def state_dict(self) -> dict[str, Any]:
        return {"tolerance": self.tolerance, "narrowed_at": self._narrowed_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tolerance, self._narrowed_at = float(state["tolerance"]), int(state["narrowed_at"])
