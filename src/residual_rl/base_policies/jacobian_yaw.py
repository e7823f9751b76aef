"""A scripted policy that solves the drag: the `jacobian` controller, and the wrist's roll turns the sheet while it is pressed and dragged.

It shows that a task can be solved, and makes demonstrations. A sheet under a finger turns easily while it slides and hardly while it
rests, so where yaw is left over the finger stirs: it circles the goal, in circles that shrink with the yaw error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from residual_rl.base_policies.jacobian import DRAG, JacobianCfg, JacobianPolicy
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.registry import BasePolicySpec, register_base_policy
from residual_rl.types import Obs, State


@dataclass(frozen=True)
class JacobianYawCfg(JacobianCfg):
    """Settings of the `jacobian-yaw` base policy."""

    yaw_gain: float = 0.1
    """Share of the yaw error that the finger is turned by, each step while dragging."""
    stir_radius: float = 0.01
    """Radius of the circles around the goal while there is much yaw left [m]."""
    stir_yaw_error: float = 0.1
    """Yaw error below which the circles shrink in proportion to it [rad]."""
    stir_period: int = 15
    """Steps of a circle."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("yaw_gain", "stir_radius"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.stir_yaw_error <= 0:
            raise ConfigError(f"stir_yaw_error must be above 0, not {self.stir_yaw_error}")
        if self.stir_period < 1:
            raise ConfigError(f"stir_period must be at least 1, not {self.stir_period}")


class JacobianYawPolicy(JacobianPolicy):
    """`JacobianPolicy` with the wrist's roll, the last joint of its chain, under control of the sheet's yaw.

    Args:
        cfg: the settings.
        env: its arm is moved; the last joint that its kinematics tells of is the wrist's roll.
    """

    def __init__(self, cfg: JacobianYawCfg, env: VecEnv):
        super().__init__(cfg, env)
        self._yaw_cfg = cfg
        self._steps = torch.zeros_like(self._phase)

    def reset(self, mask: Tensor) -> None:
        super().reset(mask)
        self._steps = self._steps.masked_fill(mask, 0)

    def _steps_of(self, obs: Obs, worlds: Tensor) -> Tensor:
        steps = super()._steps_of({**obs, "goal": self._stirred(obs["goal"], self._steps[worlds])}, worlds)
        self._steps = self._steps.index_add(0, worlds, torch.ones_like(worlds))
        dragging = self._phase[worlds] == DRAG
        steps[:, self._arm] = torch.where(dragging, self._roll(obs, steps), 0.0)
        return steps

    def _stirred(self, goal: Tensor, steps: Tensor) -> Tensor:
        """`goal` [b, 3], moved along a circle around it."""
        cfg = self._yaw_cfg
        angle = steps * (2 * math.pi / cfg.stir_period)
        radius = cfg.stir_radius * (goal[:, 2].abs() / cfg.stir_yaw_error).clamp(max=1.0)
        return goal + torch.stack([radius * angle.cos(), radius * angle.sin(), torch.zeros_like(radius)], 1)

    def _roll(self, obs: Obs, steps: Tensor) -> Tensor:
        """The roll's step [b] that turns the finger about the vertical towards the goal's yaw, whatever the other joints turn it by."""
        frames, tool = self._chain.forward(obs["joint_target"][:, : self._chain.num_joints].double())
        _, angular = self._chain.jacobian(frames, tool)
        turn = angular[:, 2] * self._joint_step[: self._chain.num_joints]  # about the vertical, per largest step
        by_arm = (turn[:, : self._arm] * steps[:, : self._arm]).sum(1)
        return ((self._yaw_cfg.yaw_gain * obs["goal"][:, 2] - by_arm) / turn[:, self._arm]).clamp(-1.0, 1.0)

    def state_dict(self) -> State:
        return {**super().state_dict(), "steps": self._steps}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._steps = state["steps"].to(self._steps.device)


def make(cfg: JacobianYawCfg, env: VecEnv) -> JacobianYawPolicy:
    """The policy for the arm of `env`."""
    return JacobianYawPolicy(cfg, env)


register_base_policy(
    BasePolicySpec(
        id="jacobian-yaw",
        summary="jacobian, and the wrist's roll turns the sheet: solves so101-paper; for sanity checks and demonstrations",
        make=f"{__name__}:make",
        config=f"{__name__}:JacobianYawCfg",
    )
)
