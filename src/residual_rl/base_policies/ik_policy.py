"""Inverse kinematics towards the Cartesian goals of a task, for any arm that an env describes.

If actions change the tool's pose, the motion towards the goal is commanded directly, and the env's controller
computes the joints. If actions change the joints, they are computed by damped least squares with the Jacobian
of the robot's URDF.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from residual_rl.base_policies.ik import IKCfg
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError, ModelError, UnknownNameError
from residual_rl.registry import load
from residual_rl.robots.arm import Arm
from residual_rl.robots.cartesian_goals import GOALS, CartesianGoals, ToolGoal
from residual_rl.robots.kinematics import KinematicChain, damped_least_squares, matrix_from_quaternion
from residual_rl.types import BasePolicy, Obs, State
from residual_rl.utils.text import one_line


class IKPolicy(BasePolicy):
    """Moves the tool of each env to its goals, phase by phase.

    Args:
        cfg: the settings.
        env: the env, which describes its arm.
        goals: the goals of its task.

    Raises:
        ConfigError: the arm, control mode or gripper of `env` is not supported.
    """

    def __init__(self, cfg: IKCfg, env: VecEnv, goals: CartesianGoals):
        # Check that the arm and its control mode are supported.
        arm = env.arm
        if arm is None:
            raise ConfigError(
                "it needs an env with one arm that describes the effect of actions on the tool; this env "
                "does not"
            )
        if arm.control is None:
            mode = env.control_mode or "default"
            raise ConfigError(
                f"control mode {mode!r} of robot {arm.robot!r} is not supported; "
                "choose pd_ee_delta_pos, pd_ee_delta_pose or pd_joint_delta_pos"
            )
        if goals.grips and not arm.gripper_index:
            raise ConfigError(f"robot {arm.robot!r} has no gripper, which {type(goals).__name__} requires")
        if arm.gripper_index and arm.gripper_opens is None:
            raise ConfigError(
                f"the action that opens the gripper of robot {arm.robot!r} is unknown: "
                "set the attribute gripper_opens of its class to 1.0 or -1.0"
            )

        # Select the observations that the goals and the controller need.
        self.cfg, self.goals = cfg, goals
        self._arm, self._device = arm, env.device
        self._action_dim = len(env.action_unit)
        self._scale = torch.tensor(arm.action_scale, dtype=torch.float64, device=env.device)
        self._jacobian = _Jacobian(arm, env.device) if arm.control == "joint_delta" else None
        self.inputs = {**goals.inputs, "tcp_pose": (7,), "base_pose": (7,)}  # type: ignore[misc]
        if self._jacobian is not None:
            self.inputs["joint_position"] = (len(arm.all_joint_names),)
        zeros = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
        self._phase, self._steps = zeros, zeros

    def reset(self, mask: Tensor) -> None:
        self._phase = self._phase.masked_fill(mask, 0)
        self._steps = self._steps.masked_fill(mask, 0)

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        obs = {name: value.double() for name, value in obs.items()}

        # Advance the phase of each env.
        before, steps = self._phase[env_ids], self._steps[env_ids]
        phase = self.goals.advance(obs, before, steps)
        steps = torch.where(phase == before, steps, 0)
        goal = self.goals.goal(obs, phase, steps)
        self._phase = self._phase.index_copy(0, env_ids, phase)
        self._steps = self._steps.index_copy(0, env_ids, steps + 1)
        return self._to_actions(goal, obs)[:, None]

    def _to_actions(self, goal: ToolGoal, obs: Obs) -> Tensor:
        """Actions [b, A] towards `goal`."""
        # Move and turn towards the goal, in the frame of the robot's base.
        tool, to_base = obs["tcp_pose"], matrix_from_quaternion(obs["base_pose"][:, 3:]).mT
        move = _shortened(self.cfg.gain * (goal.position - tool[:, :3]), self.cfg.max_step)
        turn = _shortened(self.cfg.gain * turn_to(tool[:, 3:], goal.yaw), self.cfg.max_turn)
        move, turn = ((to_base @ vector[..., None]).squeeze(-1) for vector in (move, turn))

        # Convert to actions of the control mode.
        if self._jacobian is not None:
            steps = damped_least_squares(
                self._jacobian(obs["joint_position"]), torch.cat([move, turn], 1), self.cfg.damping
            )
            own = _bounded(steps / self._scale)
        elif self._arm.control == "ee_delta_pose":
            own = torch.cat([_bounded(move / self._scale[:3]), _shortened(turn / self._scale[3:], 1.0)], 1)
        else:
            own = _bounded(move / self._scale)

        # Place them among all actions, with the gripper.
        actions = torch.zeros(len(own), self._action_dim, dtype=own.dtype, device=own.device)
        actions[:, list(self._arm.action_index)] = own
        if self._arm.gripper_index:
            opening = torch.where(goal.is_open, 1.0, -1.0).to(own) * (self._arm.gripper_opens or 0.0)
            actions[:, list(self._arm.gripper_index)] = opening[:, None].expand(
                -1, len(self._arm.gripper_index)
            )
        return actions

    def state_dict(self) -> State:
        return {"phase": self._phase, "steps": self._steps}

    def load_state_dict(self, state: State) -> None:
        self._phase, self._steps = (state[name].to(self._device) for name in ("phase", "steps"))


def turn_to(quaternion: Tensor, yaw: Tensor | None) -> Tensor:
    """The rotation vectors [b, 3] that point a tool's z axis down, and turn its y axis to `yaw` [b] or the
    nearest quarter turn from it.

    Args:
        quaternion: orientation of the tool (w, x, y, z) [b, 4].
        yaw: [rad]; None: no rotation about the vertical.
    """
    # Turn the z axis down by the smallest rotation.
    axes = matrix_from_quaternion(quaternion)
    down = torch.zeros_like(axes[..., 2])
    down[:, 2] = -1.0
    across = torch.linalg.cross(axes[..., 2], down)
    sine = across.norm(dim=1)
    angle = torch.atan2(sine, -axes[:, 2, 2])
    turn = across * (angle / sine.clamp(min=1e-9))[:, None]
    if yaw is None:
        return turn

    # Turn about the vertical by at most an eighth of a circle.
    off = yaw - torch.atan2(axes[:, 1, 1], axes[:, 0, 1])
    quarter = math.pi / 2
    off = off - quarter * (off / quarter).round()
    return turn - down * off[:, None]


def _shortened(vector: Tensor, longest: float) -> Tensor:
    """`vector` [b, D] with its length cut to `longest`."""
    return vector * (longest / vector.norm(dim=1, keepdim=True).clamp(min=1e-9)).clamp(max=1.0)


def _bounded(vector: Tensor) -> Tensor:
    """`vector` [b, D] scaled down so that no element exceeds 1, which keeps its direction."""
    return vector / vector.abs().amax(1, keepdim=True).clamp(min=1.0)


class _Jacobian:
    """The Jacobian of the tool, in the frame of the robot's base, for the joints that the actions move.

    Raises `ConfigError` if the arm's URDF cannot be used.
    """

    def __init__(self, arm: Arm, device: torch.device):
        self._chain = _chain(arm).to(device)
        names = self._chain.joint_names
        if names != arm.moving_joint_names:
            raise ConfigError(
                f"the joints that move {arm.tool_link!r} are {', '.join(names)} in {arm.urdf}, and"
                f" {', '.join(arm.moving_joint_names)} in the simulator: choose a Cartesian control mode,"
                " such as pd_ee_delta_pose"
            )
        still = [name for name in arm.joint_names if name not in names]
        if still:
            raise ConfigError(
                f"joint(s) {', '.join(still)} of robot {arm.robot!r} do not move its tool {arm.tool_link!r}"
            )
        self._positions = [arm.all_joint_names.index(name) for name in names]
        self._columns = [names.index(name) for name in arm.joint_names]

    def __call__(self, joint_position: Tensor) -> Tensor:
        """[b, 6, N] float64, for all joints [b, J]."""
        frames = self._chain.forward(joint_position[:, self._positions])
        return torch.cat(self._chain.jacobian(*frames), 1)[:, :, self._columns]


def _chain(arm: Arm) -> KinematicChain:
    """The joints from the base to the tool, float64."""
    if arm.urdf is None:
        raise ConfigError(
            f"robot {arm.robot!r} has no URDF to compute its kinematics from: choose a Cartesian control mode"
        )
    try:
        return KinematicChain.from_urdf(Path(arm.urdf).read_bytes(), arm.tool_link)
    except (OSError, ModelError) as error:
        raise ConfigError(
            f"the kinematics of robot {arm.robot!r} cannot be read from {arm.urdf} ({one_line(error)}): "
            "choose a Cartesian control mode"
        ) from error


def _goals_of(cfg: IKCfg, env: VecEnv) -> CartesianGoals:
    robot = "" if env.arm is None else env.arm.robot
    if cfg.goals:
        if ":" not in cfg.goals:
            raise ConfigError(f"goals must be MODULE:CLASS, not {cfg.goals!r}")
        reference = cfg.goals
    else:
        try:
            reference = GOALS.get(env.task_name).goals
        except UnknownNameError as error:
            raise ConfigError(
                f"{error}; for another task write a `CartesianGoals` and select it: --base.goals MODULE:CLASS"
            ) from None
    kind = load(reference)
    if not (isinstance(kind, type) and issubclass(kind, CartesianGoals)):
        raise ConfigError(
            f"goals must name a class of `CartesianGoals`; {reference!r} is a {type(kind).__name__}"
        )
    goals: CartesianGoals = kind(robot)
    return goals


def make(cfg: IKCfg, env: VecEnv) -> IKPolicy:
    """The controller for the arm and the task of `env`."""
    return IKPolicy(cfg, env, _goals_of(cfg, env))
