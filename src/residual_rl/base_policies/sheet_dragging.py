"""Controllers that drag a sheet to its goal with Jacobian inverse kinematics, without lifting it.

They use damped least squares on the *commanded* joint targets. The wrist's roll and the jaw are left to the
residual, because a base policy that recentred them would cancel it out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from residual_rl.base_policies.jacobian import JacobianCfg, JacobianYawCfg
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.robots.kinematics import finger_steps
from residual_rl.types import BasePolicy, Obs, State

APPROACH, DESCEND, DRAG = 0, 1, 2


class JacobianPolicy(BasePolicy):
    """Moves above the sheet's centre, presses, and drags towards the goal; ignores the sheet's yaw.

    Args:
        cfg: the settings.
        env: an env that exposes `kinematics`, of the first joints up to the fingertip, and `joint_step`.

    Raises:
        ConfigError: `env` does not expose them.
    """

    inputs = {"joint_target": (6,), "sheet_pose": (7,), "goal": (3,)}  # noqa: RUF012

    def __init__(self, cfg: JacobianCfg, env: VecEnv):
        if env.kinematics is None or env.joint_step is None:
            raise ConfigError("it needs an env that exposes its arm's kinematics and joint_step")
        self.cfg = cfg
        self._chain = env.kinematics
        self._joint_step = env.joint_step
        self._to_actions = env.steps_to_actions
        self._phase = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
        self._arm = self._chain.num_joints - 1
        """Number of joints that the controller moves: all of the chain but the last, the wrist's roll."""

    def reset(self, mask: Tensor) -> None:
        self._phase = self._phase.masked_fill(mask, APPROACH)

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        return self._to_actions(self._steps_of(obs, env_ids) * self._joint_step, obs)[:, None]

    def _steps_of(self, obs: Obs, env_ids: Tensor) -> Tensor:
        """Changes of the joint targets [b, J], in units of the largest allowed step."""
        frames, tool = self._chain.forward(obs["joint_target"][:, : self._chain.num_joints].double())
        tip, finger = tool[:, :3, 3], tool[:, :3, 0]
        to_sheet = obs["sheet_pose"][:, :2] - tip[:, :2]
        self._advance(env_ids, tip, to_sheet)
        step = self._cartesian_step(obs, self._phase[env_ids], tip, to_sheet)
        error = torch.cat([step, self._pitch_error(frames, tip + step, finger)[:, None]], 1)

        delta = finger_steps(self._chain, frames, tool, error, self.cfg.damping)
        steps = torch.zeros(len(env_ids), len(self._joint_step), dtype=delta.dtype, device=delta.device)
        steps[:, : self._arm] = delta / self._joint_step[: self._arm]
        # Scale down all joints together, which keeps the direction.
        return steps / steps.abs().amax(1, keepdim=True).clamp(min=1.0)

    def _advance(self, env_ids: Tensor, tip: Tensor, to_sheet: Tensor) -> None:
        phase = self._phase[env_ids]
        over_sheet = to_sheet.norm(dim=1) < self.cfg.descend_distance
        pressing = tip[:, 2] < 0.5 * self.cfg.press_height
        phase = torch.where((phase == APPROACH) & over_sheet, DESCEND, phase)
        phase = torch.where((phase == DESCEND) & pressing, DRAG, phase)
        self._phase = self._phase.index_copy(0, env_ids, phase)

    def _cartesian_step(self, obs: Obs, phase: Tensor, tip: Tensor, to_sheet: Tensor) -> Tensor:
        cfg = self.cfg
        height = torch.where(
            phase == APPROACH, obs["sheet_pose"][:, 2] + cfg.approach_height, cfg.press_height
        )
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


def make_jacobian(cfg: JacobianCfg, env: VecEnv) -> JacobianPolicy:
    """The `jacobian` policy for the arm of `env`."""
    return JacobianPolicy(cfg, env)


class JacobianYawPolicy(JacobianPolicy):
    """`JacobianPolicy` that also controls the sheet's yaw with the wrist's roll, the last joint of the chain.

    Args:
        cfg: the settings.
        env: an env that exposes `kinematics` and `joint_step`; the last joint of the chain is the wrist's
            roll.
    """

    def __init__(self, cfg: JacobianYawCfg, env: VecEnv):
        super().__init__(cfg, env)
        self._yaw_cfg = cfg
        self._steps = torch.zeros_like(self._phase)

    def reset(self, mask: Tensor) -> None:
        super().reset(mask)
        self._steps = self._steps.masked_fill(mask, 0)

    def _steps_of(self, obs: Obs, env_ids: Tensor) -> Tensor:
        steps = super()._steps_of({**obs, "goal": self._stirred(obs["goal"], self._steps[env_ids])}, env_ids)
        self._steps = self._steps.index_add(0, env_ids, torch.ones_like(env_ids))
        dragging = self._phase[env_ids] == DRAG
        steps[:, self._arm] = torch.where(dragging, self._roll(obs, steps), 0.0)
        return steps

    def _stirred(self, goal: Tensor, steps: Tensor) -> Tensor:
        """`goal` [b, 3], moved along a circle around it."""
        cfg = self._yaw_cfg
        angle = steps * (2 * math.pi / cfg.stir_period)
        radius = cfg.stir_radius * (goal[:, 2].abs() / cfg.stir_yaw_error).clamp(max=1.0)
        return goal + torch.stack([radius * angle.cos(), radius * angle.sin(), torch.zeros_like(radius)], 1)

    def _roll(self, obs: Obs, steps: Tensor) -> Tensor:
        """Step of the roll [b] that turns the finger about the vertical towards the goal's yaw.

        It compensates for the turn by the other joints.
        """
        frames, tool = self._chain.forward(obs["joint_target"][:, : self._chain.num_joints].double())
        _, angular = self._chain.jacobian(frames, tool)
        # The rotation about the vertical, per largest step of each joint.
        turn = angular[:, 2] * self._joint_step[: self._chain.num_joints]
        by_arm = (turn[:, : self._arm] * steps[:, : self._arm]).sum(1)
        return ((self._yaw_cfg.yaw_gain * obs["goal"][:, 2] - by_arm) / turn[:, self._arm]).clamp(-1.0, 1.0)

    def state_dict(self) -> State:
        return {**super().state_dict(), "steps": self._steps}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._steps = state["steps"].to(self._steps.device)


def make_jacobian_yaw(cfg: JacobianYawCfg, env: VecEnv) -> JacobianYawPolicy:
    """The `jacobian-yaw` policy for the arm of `env`."""
    return JacobianYawPolicy(cfg, env)
