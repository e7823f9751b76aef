"""ManiSkill's own motion planning solutions, as episodes in any control mode.

A solution plans and acts in joint positions, without a step limit. ManiSkill's conversion of actions then
replays the plan in an env of the requested control mode. Observations, rewards and success are those of the
replay.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from residual_rl.envs.maniskill.clean_reset import give_fresh_physics
from residual_rl.envs.maniskill.factory import make_env, require_maniskill
from residual_rl.envs.maniskill.relative_poses import RelativePoses
from residual_rl.envs.maniskill.sim_env import ManiSkillEnv, Step
from residual_rl.envs.maniskill.spec import ManiSkillEnvCfg
from residual_rl.errors import ConfigError, MissingDependencyError, UnknownNameError

PLANNED_MODE = "pd_joint_pos"
"""What the solutions act in."""
CONVERTED_MODES = (
    "pd_joint_delta_pos",
    "pd_joint_target_delta_pos",
    "pd_joint_vel",
    "pd_ee_delta_pos",
    "pd_ee_delta_pose",
    "pd_ee_target_delta_pos",
    "pd_ee_target_delta_pose",
    "pd_ee_pose",
)
"""What ManiSkill converts joint positions to."""
FAMILIES = {
    "panda": "panda",
    "panda_wristcam": "panda",
    "panda_stick": "panda",
    "xarm6_robotiq": "xarm6",
    "so100": "so100",
}
"""The folder of ManiSkill's solutions for each robot that has some."""
LEAST_LIMIT = 200
"""Solutions take two or three times the steps that ManiSkill's tasks allow a trained policy."""
MAX_PLANNED_STEPS = 2000
"""Steps after which a solution is taken to go round in circles."""
HOLD_STEPS = 10
"""Steps for which the last planned position is held: success wants what was placed to lie still."""
_HERE = torch.zeros(1, dtype=torch.int64)

Arrays = dict[str, NDArray[Any]]
"""An episode of T steps: `obs/NAME` [T + 1, …], `actions` [T, A], `rewards`, `success`, `terminated`,
`truncated` [T], `state` [1, S]."""


class NoPlanError(Exception):
    """An episode for which there is no plan, or which a solution failed at."""


def require_planner() -> None:
    """Raise `MissingDependencyError` where the motion planner is not installed, or would crash."""
    require_maniskill()
    if importlib.util.find_spec("mplib") is None:
        raise MissingDependencyError(
            "mplib, ManiSkill's motion planner,", "install it with `pip install mplib==0.1.1 'numpy<2'`"
        )
    if int(np.__version__.split(".")[0]) >= 2:
        raise MissingDependencyError(
            f"a NumPy that mplib works with (it crashes with {np.__version__})",
            "install it with `pip install 'numpy<2'`",
        )


def find_solution(env_id: str, robot: str) -> Callable[..., Any]:
    """ManiSkill's solution of a task for a robot. Raises `UnknownNameError` where there is none."""
    if robot not in FAMILIES:
        raise UnknownNameError("robot with motion planning solutions", robot, FAMILIES)
    solutions = importlib.import_module(
        f"mani_skill.examples.motionplanning.{FAMILIES[robot]}.run"
    ).MP_SOLUTIONS
    if env_id not in solutions:
        raise UnknownNameError(
            f"ManiSkill env with a motion planning solution for {robot}:", env_id, solutions
        )
    solution: Callable[..., Any] = solutions[env_id]
    return solution


class Planner:
    """Plans episodes of a task, one after the other.

    Args:
        cfg: settings of the env that the episodes are recorded in. Without a control mode, the task's
            default.
        max_episode_steps: steps after which an episode is truncated; None: twice the task's limit, at least
            `LEAST_LIMIT`.
        ignore_terminations: whether episodes go on after success or failure.

    Raises `ConfigError` for tasks, robots and control modes that cannot be planned for.
    """

    def __init__(self, cfg: ManiSkillEnvCfg, max_episode_steps: int | None, ignore_terminations: bool):
        self._world = ManiSkillEnv(cfg)
        self.description = self._world.description
        self.max_episode_steps = max_episode_steps or max(
            LEAST_LIMIT, 2 * (self.description.max_episode_steps or 0)
        )
        self._to_the_end = ignore_terminations
        # can the task be planned for this robot and converted to this control mode?
        self._solve = find_solution(cfg.env_id, self.description.robot)
        mode, robot = self.description.control_mode, self.description.robot
        if mode not in (PLANNED_MODE, *CONVERTED_MODES):
            raise UnknownNameError(
                "control mode that plans are converted to:", mode, (*CONVERTED_MODES, PLANNED_MODE)
            )
        if mode != PLANNED_MODE and "arm" not in getattr(self._world.env.agent.controller, "controllers", {}):
            raise ConfigError(
                f"ManiSkill cannot convert plans for robot {robot!r} to {mode}; take --control-mode"
                f" {PLANNED_MODE}"
            )
        # the env in which solutions act, without observations
        planned = dataclasses.replace(cfg, control_mode=PLANNED_MODE, obs_mode="state", render_backend="none")
        self._plan = _PlannedIn(make_env(planned, 1, obs_mode="none"))

    def episode(self, seed: int) -> Arrays:
        """The episode of `seed`, from 0 to 2^31 - 1, which may well fail in its control mode. Raises
        `NoPlanError`."""
        actions = self._planned(seed)
        stored = _StoredIn(self._world, seed, self.max_episode_steps, self._to_the_end)
        with contextlib.suppress(_EndedError):
            self._convert(actions, seed, stored)
        return stored.arrays()

    def _planned(self, seed: int) -> NDArray[np.float32]:
        """[T, n]: the actions of a solution, as its control mode takes them, and a moment of rest."""
        np.random.seed(seed)  # noqa: NPY002 (as in a worker that steps worlds)
        # a solution returns an int if planning failed
        result = self._solve(self._plan, seed=seed, debug=False, vis=False)
        if isinstance(result, int) or not self._plan.actions:
            raise NoPlanError("no plan was found")
        return np.stack([*self._plan.actions, *[self._plan.actions[-1]] * HOLD_STEPS])

    def _convert(self, actions: NDArray[np.float32], seed: int, stored: _StoredIn) -> None:
        mode = self.description.control_mode
        if mode == PLANNED_MODE:
            for action in actions:
                stored.step(torch.from_numpy(action))
            return
        from mani_skill.trajectory.utils.actions.conversion import from_pd_joint_pos

        # ManiSkill's conversion replays the plan in one env and steps the other
        self._plan.reset(seed=seed)
        from_pd_joint_pos(mode, actions, self._plan, stored)


class _PlannedIn:
    """The env that a solution acts in. It records the actions."""

    def __init__(self, env: Any):
        self.unwrapped = env
        self.actions: list[NDArray[np.float32]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unwrapped, name)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.actions = []
        if self.unwrapped.reconfiguration_freq != 1:
            give_fresh_physics(self.unwrapped)
        return self.unwrapped.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        if len(self.actions) == MAX_PLANNED_STEPS:
            raise NoPlanError(f"the solution is not done after {MAX_PLANNED_STEPS} steps")
        self.actions.append(np.array(action, np.float32).reshape(-1))
        return self.unwrapped.step(action)


class _EndedError(Exception):
    """The recorded episode has ended; the rest of the plan is not executed."""


class _StoredIn:
    """Records an episode of an env that is stepped with ManiSkill's own actions."""

    def __init__(self, world: ManiSkillEnv, seed: int, limit: int, to_the_end: bool):
        self.unwrapped = world.env
        self._world, self._limit, self._to_the_end = world, limit, to_the_end
        np.random.seed(seed)  # noqa: NPY002 (as in `EnvWorker.reset`)
        # the same seed as in planning: the same scene
        world.reset(_HERE, torch.tensor([seed]))
        self._state = world.states()[:, 1:]
        self._obs = [world.observations()]
        self._actions: list[torch.Tensor] = []
        self._steps: list[Step] = []

    def step(self, action: Any) -> tuple[None, None, None, None, dict[str, Any]]:
        """Execute what the control mode takes. Raises `_EndedError` after the last step of the episode."""
        # out-of-range actions are clipped, as a policy's would be
        ours = self._world.normalised(torch.as_tensor(action).reshape(1, -1).float()).clamp(-1.0, 1.0)
        step = self._world.step(ours)
        self._actions.append(ours[0])
        self._steps.append(step)
        self._obs.append(step.obs)
        if len(self._steps) == self._limit or (self._ended(step) and not self._to_the_end):
            raise _EndedError
        return None, None, None, None, {}

    @staticmethod
    def _ended(step: Step) -> bool:
        return bool(step.success[0] | step.fail[0])

    def arrays(self) -> Arrays:
        """The recorded episode; truncated after the last planned action if it has not ended before."""
        # only the last step ends the episode
        terminated, truncated = np.zeros(len(self._steps), bool), np.zeros(len(self._steps), bool)
        terminated[-1] = self._ended(self._steps[-1]) and not self._to_the_end
        truncated[-1] = not terminated[-1]
        obs = {name: torch.cat([obs[name] for obs in self._obs]) for name in self._obs[0]}
        obs = RelativePoses(self._world.description.observations).add(obs)
        return {
            **{f"obs/{name}": value.numpy() for name, value in obs.items()},
            "actions": torch.stack(self._actions).numpy(),
            "rewards": torch.cat([step.reward for step in self._steps]).numpy(),
            "success": torch.cat([step.success for step in self._steps]).numpy(),
            "terminated": terminated,
            "truncated": truncated,
            "state": self._state.numpy(),
        }
