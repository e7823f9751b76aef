"""How Fetch's envs are created and solved. The file is read by the workers."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STEP = 0.05
"""How far an action of 1 moves the target of the gripper [m]."""
_HOVER = 0.08
"""Height above the object at which the gripper moves sideways [m]."""


def use_integer_joint_types() -> None:
    """The shim for MuJoCo 4: let gymnasium-robotics compare types of joints as integers.

    It asks whether an element of `model.jnt_type`, a NumPy integer, is in a tuple of members of
    `mujoco.mjtJoint`. With MuJoCo 4 it never is, so that an assertion fails. Only gymnasium-robotics sees the
    integers; `mujoco` itself is not changed.
    """
    import mujoco
    from gymnasium_robotics.utils import mujoco_utils

    if mujoco.mjtJoint.mjJNT_HINGE == np.int32(3):
        return
    members = mujoco.mjtJoint.__members__
    seen = types.ModuleType("mujoco")
    seen.__dict__.update(mujoco.__dict__)
    seen.__dict__["mjtJoint"] = types.SimpleNamespace(**{name: int(value) for name, value in members.items()})
    mujoco_utils.mujoco = seen


def keep_state_in_render(env: Any) -> None:
    """Keep the simulation as it is when the env is rendered.

    Fetch moves its goal marker and computes the positions of all bodies before it renders. The next step
    would start from these, and not from those of the last physics step, so that episodes with and without a
    video would differ.
    """
    import mujoco

    render, saved = env.render, mujoco.MjData(env.model)

    def render_only() -> Any:
        mujoco.mj_copyData(saved, env.model, env.data)
        frame = render()
        mujoco.mj_copyData(env.data, env.model, saved)
        return frame

    env.render = render_only


class FetchAdapter:
    """Makes Fetch work with MuJoCo 4, and has scripted policies for all tasks but FetchSlide."""

    def make(self, env_id: str, kwargs: dict[str, Any]) -> Any:
        """The env, with `use_integer_joint_types` and `keep_state_in_render`."""
        import gymnasium

        use_integer_joint_types()
        self._script: Any = next((s for name, s in _SCRIPTS.items() if env_id.startswith(name)), None)
        if self._script is None:
            self.expert = None  # type: ignore[assignment, method-assign]
        env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
        keep_state_in_render(env.unwrapped)
        return env

    def expert(self, env: Any, obs: dict[str, NDArray[Any]]) -> NDArray[Any]:  # noqa: ARG002
        """The action of the scripted policy: the change of the gripper's position, and its opening."""
        action: NDArray[Any] = self._script(obs["observation"], obs["desired_goal"])
        return action


def _reach(state: NDArray[Any], goal: NDArray[Any]) -> NDArray[Any]:
    """Move straight to the goal."""
    return _move(state, goal)


def _push(state: NDArray[Any], goal: NDArray[Any]) -> NDArray[Any]:
    """Move above the object to the side opposite of the goal, down to the table, and push."""
    gripper, cube = state[:3], state[3:6]
    way = goal[:2] - cube[:2]
    direction = way / max(np.linalg.norm(way), 1e-6)
    # the gripper's place relative to the object: behind it, and to the side
    offset = gripper[:2] - cube[:2]
    behind, aside = -offset @ direction, abs(offset[0] * direction[1] - offset[1] * direction[0])
    is_low = gripper[2] < cube[2] + 0.03
    if is_low and behind > 0.02 and aside < 0.02:
        return _move(state, np.array([*(cube[:2] + way - 0.03 * direction), cube[2]]))
    start = cube[:2] - 0.09 * direction
    if np.linalg.norm(gripper[:2] - start) < 0.02:
        return _move(state, np.array([*start, cube[2]]))
    if gripper[2] < cube[2] + _HOVER - 0.03:
        return _move(state, np.array([*gripper[:2], cube[2] + _HOVER]))
    return _move(state, np.array([*start, cube[2] + _HOVER]))


def _pick_and_place(state: NDArray[Any], goal: NDArray[Any]) -> NDArray[Any]:
    """Move above the object, down, close the gripper, and move to the goal."""
    cube, offset, opening = state[3:6], state[6:9], state[9] + state[10]
    aligned = np.linalg.norm(offset[:2]) < 0.015
    if not aligned:
        return _move(state, cube + np.array([0.0, 0.0, _HOVER]), opening=1.0)
    if abs(offset[2]) > 0.015:
        return _move(state, cube, opening=1.0)
    if opening > 0.055:
        return _move(state, cube, opening=-1.0)
    return _move(state, goal, opening=-1.0)


_SCRIPTS = {"FetchReach": _reach, "FetchPush": _push, "FetchPickAndPlace": _pick_and_place}


def _move(state: NDArray[Any], target: NDArray[Any], opening: float = -1.0) -> NDArray[Any]:
    """The action that moves the gripper towards `target` [3] [m]."""
    change = np.clip(0.5 * (target - state[:3]) / _STEP, -1.0, 1.0)
    return np.append(change, opening)
