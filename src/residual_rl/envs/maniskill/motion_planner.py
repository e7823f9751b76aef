"""Episodes of ManiSkill's motion planning solutions, in any control mode.

A solution plans and executes joint positions, without a step limit. ManiSkill's action conversion then
replays the plan in an env with the requested control mode. Observations, rewards and success are those of the
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
"""Control mode of the solutions."""
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
"""Control modes to which ManiSkill converts joint positions."""
FAMILIES = {
    "panda": "panda",
    "panda_wristcam": "panda",
    "panda_stick": "panda",
    "xarm6_robotiq": "xarm6",
    "so100": "so100",
}
"""Folder of ManiSkill's solutions by robot."""
LEAST_LIMIT = 200
"""Lowest default of `max_episode_steps`; solutions take two or three times the steps of a trained policy."""
MAX_PLANNED_STEPS = 2000
"""Steps after which a solution is stopped, because it makes no progress."""
HOLD_STEPS = 10
"""Steps for which the last planned position is held, since success requires objects at rest."""
_HERE = torch.zeros(1, dtype=torch.int64)

Arrays = dict[str, NDArray[Any]]
"""An episode of T steps: `obs/NAME` [T + 1, …], `actions` [T, A], `rewards`, `success`, `terminated`,
`truncated` [T], `state` [1, S]."""


class NoPlanError(Exception):
    """The planner found no plan for an episode, or its solution did not finish."""


def require_planner() -> None:
    """Raise `MissingDependencyError` if the motion planner is not installed or would crash."""
    require_maniskill()
    if importlib.util.find_spec("mplib") is None:
        raise MissingDependencyError(
            "mplib, ManiSkill's motion planner,", "install it with `pip install mplib==0.1.1 'numpy<2'`"
        )
    if int(np.__version__.split(".")[0]) >= 2:
        raise MissingDependencyError(
            f"a NumPy version that is compatible with mplib (it crashes with {np.__version__})",
            "install it with `pip install 'numpy<2'`",
        )


def find_solution(env_id: str, robot: str) -> Callable[..., Any]:
    """ManiSkill's solution of a task for a robot. Raises `UnknownNameError` if there is none."""
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
    """Plans episodes of a task, one at a time.

    Args:
        cfg: settings of the env in which the episodes are recorded.
        max_episode_steps: steps after which an episode is truncated. None: twice the task's limit, but at
            least `LEAST_LIMIT`.
        ignore_terminations: whether episodes continue after success or failure.

    Raises:
        ConfigError: plans cannot be converted to the control mode of this robot.
        UnknownNameError: there is no solution for this task and robot, or no conversion to the control mode.
    """

    def __init__(self, cfg: ManiSkillEnvCfg, max_episode_steps: int | None, ignore_terminations: bool):
        self._env = ManiSkillEnv(cfg)
        self.description = self._env.description
        self.max_episode_steps = max_episode_steps or max(
            LEAST_LIMIT, 2 * (self.description.max_episode_steps or 0)
        )
        self._ignore_terminations = ignore_terminations
        # check that there is a solution for this robot and a conversion to this control mode
        self._solve = find_solution(cfg.env_id, self.description.robot)
        mode, robot = self.description.control_mode, self.description.robot
        if mode not in (PLANNED_MODE, *CONVERTED_MODES):
            raise UnknownNameError(
                "control mode that plans are converted to:", mode, (*CONVERTED_MODES, PLANNED_MODE)
            )
        if mode != PLANNED_MODE and "arm" not in getattr(self._env.env.agent.controller, "controllers", {}):
            raise ConfigError(
                f"ManiSkill cannot convert plans for robot {robot!r} to {mode}; choose --control-mode"
                f" {PLANNED_MODE}"
            )
        # the env in which the solution runs, without observations
        planned = dataclasses.replace(cfg, control_mode=PLANNED_MODE, obs_mode="state", render_backend="none")
        self._planning_env = _ActionRecorder(make_env(planned, 1, obs_mode="none"))

    def episode(self, seed: int) -> Arrays:
        """Plan and record the episode of `seed`, which is in [0, 2^31).

        The plan may succeed and its conversion to the control mode fail; see `success`. Raises `NoPlanError`.
        """
        actions = self._planned(seed)
        recorder = _EpisodeRecorder(self._env, seed, self.max_episode_steps, self._ignore_terminations)
        with contextlib.suppress(_EndedError):
            self._convert(actions, seed, recorder)
        return recorder.arrays()

    def _planned(self, seed: int) -> NDArray[np.float32]:
        """The actions [T, n] of a solution in `PLANNED_MODE`, followed by `HOLD_STEPS` of rest."""
        np.random.seed(seed)  # noqa: NPY002 (as in `EnvWorker.reset`)
        # a solution returns an int if planning failed
        result = self._solve(self._planning_env, seed=seed, debug=False, vis=False)
        actions = self._planning_env.actions
        if isinstance(result, int) or not actions:
            raise NoPlanError("no plan was found")
        return np.stack([*actions, *[actions[-1]] * HOLD_STEPS])

    def _convert(self, actions: NDArray[np.float32], seed: int, recorder: _EpisodeRecorder) -> None:
        """Execute planned `actions` [T, n] in the env with the requested control mode."""
        mode = self.description.control_mode
        if mode == PLANNED_MODE:
            for action in actions:
                recorder.step(torch.from_numpy(action))
            return
        from mani_skill.trajectory.utils.actions.conversion import from_pd_joint_pos

        # ManiSkill's conversion replays the plan in one env and steps the other
        self._planning_env.reset(seed=seed)
        from_pd_joint_pos(mode, actions, self._planning_env, recorder)


class _ActionRecorder:
    """The env in which a solution runs. It records the actions."""

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
            raise NoPlanError(f"the solution did not finish within {MAX_PLANNED_STEPS} steps")
        self.actions.append(np.array(action, np.float32).reshape(-1))
        return self.unwrapped.step(action)


class _EndedError(Exception):
    """The recorded episode has ended; the rest of the plan is not executed."""


class _EpisodeRecorder:
    """Records an episode of an env that is stepped with ManiSkill's unnormalised actions."""

    def __init__(self, env: ManiSkillEnv, seed: int, max_episode_steps: int, ignore_terminations: bool):
        self.unwrapped = env.env
        self._env = env
        self._max_episode_steps = max_episode_steps
        self._ignore_terminations = ignore_terminations
        np.random.seed(seed)  # noqa: NPY002 (as in `EnvWorker.reset`)
        # the seed of planning gives the same scene
        env.reset(_HERE, torch.tensor([seed]))
        self._state = env.states()[:, 1:]
        self._obs = [env.observations()]
        self._actions: list[torch.Tensor] = []
        self._steps: list[Step] = []

    def step(self, action: Any) -> tuple[None, None, None, None, dict[str, Any]]:
        """Execute an action of the control mode. Raises `_EndedError` after the last step of the episode."""
        # clip out-of-range actions, as those of a policy would be
        normalised = self._env.normalised(torch.as_tensor(action).reshape(1, -1).float()).clamp(-1.0, 1.0)
        step = self._env.step(normalised)
        self._actions.append(normalised[0])
        self._steps.append(step)
        self._obs.append(step.obs)
        terminated = self._ended(step) and not self._ignore_terminations
        if terminated or len(self._steps) == self._max_episode_steps:
            raise _EndedError
        return None, None, None, None, {}

    @staticmethod
    def _ended(step: Step) -> bool:
        return bool(step.success[0] | step.fail[0])

    def arrays(self) -> Arrays:
        """The recorded episode. It is truncated after the last planned action if it did not terminate."""
        # only the last step ends the episode
        terminated, truncated = np.zeros(len(self._steps), bool), np.zeros(len(self._steps), bool)
        terminated[-1] = self._ended(self._steps[-1]) and not self._ignore_terminations
        truncated[-1] = not terminated[-1]
        obs = {name: torch.cat([obs[name] for obs in self._obs]) for name in self._obs[0]}
        obs = RelativePoses(self._env.description.observations).add(obs)
        return {
            **{f"obs/{name}": value.numpy() for name, value in obs.items()},
            "actions": torch.stack(self._actions).numpy(),
            "rewards": torch.cat([step.reward for step in self._steps]).numpy(),
            "success": torch.cat([step.success for step in self._steps]).numpy(),
            "terminated": terminated,
            "truncated": truncated,
            "state": self._state.numpy(),
        }
