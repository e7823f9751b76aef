"""Drag a sheet to its goal with Jacobian inverse kinematics: it never lifts and ignores the sheet's yaw.

Damped least squares on the *commanded* joint targets; the wrist's roll and the jaw are left to the residual, since a base that
recentred them would cancel it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from residual_rl.checks import check_fields
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.kinematics import damped_least_squares
from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.types import BasePolicy, Obs, State

APPROACH, DESCEND, DRAG = 0, 1, 2


@dataclass(frozen=True)
class JacobianCfg:
    """Settings of the `jacobian` base policy."""

    approach_height: float = 0.03
    """Height over the sheet at which it is approached [m]."""
    descend_distance: float = 0.012
    """Horizontal distance to the sheet's centre at which the finger goes down [m]."""
    press_height: float = -0.006
    """Commanded height while pressing [m]; below the table, so that the servos press."""
    drag_gain: float = 0.5
    """Share of the way to the goal that is commanded each step."""
    max_drag_step: float = 0.004
    """Longest step while dragging [m]."""
    max_approach_step: float = 0.015
    """Longest step while approaching and descending [m]."""
    pitch_near: tuple[float, float] = (0.18, 88.0)
    """Distance from the pan axis [m], and the finger's pitch below the horizontal there [deg]."""
    pitch_far: tuple[float, float] = (0.32, 55.0)
    """The same farther out; the pitch is linear between the two."""
    damping: float = 0.02
    """Damping of the least squares."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("approach_height", "descend_distance", "drag_gain", "max_drag_step", "max_approach_step"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.drag_gain > 1:
            raise ConfigError(f"drag_gain must be at most 1, the whole way, not {self.drag_gain}")
        if self.press_height >= 0:
            raise ConfigError(f"press_height must be below 0, the height of the table, not {self.press_height}")
        if not 0 <= self.pitch_near[0] < self.pitch_far[0]:
            raise ConfigError(f"pitch_near must be at a shorter distance than pitch_far, not {self.pitch_near[0]} and {self.pitch_far[0]}")
        for name in ("pitch_near", "pitch_far"):
            if not 0 <= getattr(self, name)[1] <= 90:
                raise ConfigError(f"{name} must have a pitch from 0 to 90 degrees, not {getattr(self, name)[1]}")
        if self.damping < 0:
            raise ConfigError(f"damping must be 0 or more, not {self.damping}")


class JacobianPolicy(BasePolicy):
    """Approach over the sheet's centre, press, drag towards the goal.

    Args:
        cfg: the settings.
        env: its arm is moved; its kinematics tells of the first joints up to the fingertip, its `joint_step` how far targets may move.
    """

    inputs = {"joint_target": (6,), "sheet_pose": (7,), "goal": (3,)}  # noqa: RUF012

    def __init__(self, cfg: JacobianCfg, env: VecEnv):
        if env.kinematics is None or env.joint_step is None:
            raise ConfigError("it needs an env that tells its arm's kinematics and how far joints may be commanded each step")
        self.cfg, self._chain, self._joint_step, self._to_actions = cfg, env.kinematics, env.joint_step, env.steps_to_actions
        self._phase = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
        self._arm = self._chain.num_joints - 1
        """Joints that the controller moves: all of the chain but the last, the wrist's roll."""

    def reset(self, mask: Tensor) -> None:
        self._phase = self._phase.masked_fill(mask, APPROACH)

    def plan(self, obs: Obs, worlds: Tensor) -> Tensor:
        return self._to_actions(self._steps_of(obs, worlds) * self._joint_step, obs)[:, None]

    def _steps_of(self, obs: Obs, worlds: Tensor) -> Tensor:
        """Changes of the joint targets [b, J], in units of the largest that is allowed."""
        frames, tool = self._chain.forward(obs["joint_target"][:, : self._chain.num_joints].double())
        tip, finger = tool[:, :3, 3], tool[:, :3, 0]
        to_sheet = obs["sheet_pose"][:, :2] - tip[:, :2]
        self._advance(worlds, tip, to_sheet)
        step = self._cartesian_step(obs, self._phase[worlds], tip, to_sheet)
        error = torch.cat([step, self._pitch_error(frames, tip + step, finger)[:, None]], 1)

        linear, angular = self._chain.jacobian(frames, tool)
        finger_z = (angular[:, 0] * finger[:, None, 1] - angular[:, 1] * finger[:, None, 0])[:, None]  # z of ω × finger
        jacobian = torch.cat([linear, finger_z], 1)[..., : self._arm]
        delta = damped_least_squares(jacobian, error, self.cfg.damping)
        steps = torch.zeros(len(worlds), len(self._joint_step), dtype=delta.dtype, device=delta.device)
        steps[:, : self._arm] = delta / self._joint_step[: self._arm]
        return steps / steps.abs().amax(1, keepdim=True).clamp(min=1.0)  # slower rather than in another direction

    def _advance(self, worlds: Tensor, tip: Tensor, to_sheet: Tensor) -> None:
        phase = self._phase[worlds]
        over_sheet = to_sheet.norm(dim=1) < self.cfg.descend_distance
        pressing = tip[:, 2] < 0.5 * self.cfg.press_height
        phase = torch.where((phase == APPROACH) & over_sheet, DESCEND, phase)
        phase = torch.where((phase == DESCEND) & pressing, DRAG, phase)
        self._phase = self._phase.index_copy(0, worlds, phase)

    def _cartesian_step(self, obs: Obs, phase: Tensor, tip: Tensor, to_sheet: Tensor) -> Tensor:
        cfg = self.cfg
        height = torch.where(phase == APPROACH, obs["sheet_pose"][:, 2] + cfg.approach_height, cfg.press_height)
        drag = (phase == DRAG)[:, None]
        horizontal = torch.where(drag, cfg.drag_gain * obs["goal"][:, :2], to_sheet)
        horizontal = _shorten(horizontal, torch.where(drag[:, 0], cfg.max_drag_step, cfg.max_approach_step))
        vertical = (height - tip[:, 2]).clamp(-cfg.max_approach_step, cfg.max_approach_step)
        return torch.cat([horizontal, vertical[:, None]], 1)

    def _pitch_error(self, frames: Tensor, tip: Tensor, finger: Tensor) -> Tensor:
        (near, pitch_near), (far, pitch_far) = self.cfg.pitch_near, self.cfg.pitch_far
        radius = (tip[:, :2] - frames[:, 0, :2, 3]).norm(dim=1)
        share = ((radius - near) / (far - near)).clamp(0.0, 1.0)
        pitch = math.radians(pitch_near) + share * math.radians(pitch_far - pitch_near)
        return -pitch.sin() - finger[:, 2]

    def state_dict(self) -> State:
        return {"phase": self._phase}

    def load_state_dict(self, state: State) -> None:
        self._phase = state["phase"].to(self._phase.device)


def _shorten(vector: Tensor, longest: Tensor) -> Tensor:
    """`vector` [B, D] with its length cut to `longest` [B]."""
    length = vector.norm(dim=1).clamp(min=1e-9)
    return vector * (longest / length).clamp(max=1.0)[:, None]


def make(cfg: JacobianCfg, env: VecEnv) -> JacobianPolicy:
    """The controller for the arm of `env`."""
    return JacobianPolicy(cfg, env)


register_base_policy(
    BasePolicySpec(
        id="jacobian",
        summary="damped least squares IK: presses the sheet and drags it to the goal, ignores yaw",
        make=f"{__name__}:make",
        config=f"{__name__}:JacobianCfg",
    )
)
