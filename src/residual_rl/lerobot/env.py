"""A task as LeRobot's evaluation expects an env: the robot's units, LeRobot's names, and its attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.envs.task_env import TaskEnv
from residual_rl.errors import ConfigError
from residual_rl.factory import make_vec_env
from residual_rl.registry import TASKS
from residual_rl.types import Obs

NumpyObs = dict[str, Any]
JOINTS = "joint_position"
"""The observation of the env that is LeRobot's `agent_pos`."""
_SEEDS = 1 << 62
"""Upper bound of the seeds that are drawn for episodes without one."""


class LeRobotEnv(gymnasium.Env[NumpyObs, NDArray[Any]]):
    """A single env of a registered task whose actions command the joint targets of a real robot.

    The action is the joint targets [J] in the robot's own units, e.g. degrees. The observation is a dict:

    - `agent_pos` [J] float32: the measured joint positions in the same units;
    - `environment_state` [E] float32: the task's observations `Task.environment_state`, joined;
    - `pixels`: the images [H, W, 3] uint8 by camera, if there are any.

    The episode of a seed is that of the task's own env. The targets that `VecEnv.actions_to_targets` computes
    in float64 from the observed `environment_state` command the same actions, bit for bit.

    Args:
        task: id of the task, whose robot has hardware units.
        task_description: what to do, for policies that read it; default: the task's summary.
        cameras: names of the observed cameras.
        image_size: height and width of their images [px].
        render_mode: `rgb_array`.
        render_size: height and width of rendered images [px].
        settings: fields of the task's settings.

    Raises:
        UnknownNameError: unknown task, setting or camera.
        ConfigError: invalid settings, or a task whose robot has no hardware units.
    """

    # Gymnasium expects a class attribute.
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(
        self,
        task: str = "so101-paper",
        task_description: str | None = None,
        cameras: Sequence[str] = ("top", "wrist"),
        image_size: tuple[int, int] = (128, 128),
        render_mode: str | None = "rgb_array",
        render_size: tuple[int, int] = (240, 320),
        settings: Mapping[str, Any] | None = None,
    ):
        # The task's env
        images: dict[str, Any] = {"obs_mode": "state"}
        if cameras:
            images = {"obs_mode": "rgb+state", "obs_cameras": tuple(cameras), "image_size": tuple(image_size)}
        # a command line has lists where the settings have tuples
        given = {name: tuple(v) if isinstance(v, list) else v for name, v in (settings or {}).items()}
        vec_env = make_vec_env(task, 1, num_threads=1, **{**given, **images})
        if not isinstance(vec_env, TaskEnv) or vec_env.hardware is None or not vec_env.task.environment_state:
            raise ConfigError(f"task {task!r} has no robot with hardware units, which LeRobot's env needs")
        vec_env.episode_seeds.use_list([])  # after an episode, the env waits for its reset
        self._vec_env = vec_env
        self._hardware = vec_env.hardware
        self._names = vec_env.task.environment_state
        self._cameras = tuple(cameras)
        self._running = False
        self._scene: Tensor | None = None
        self._render_size = render_size

        # What LeRobot reads by name.
        self.task = task
        self.task_description = task_description or TASKS.get(task).summary
        self._max_episode_steps: int = vec_env.max_episode_steps
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": round(vec_env.control_hz)}  # LeRobot 0.6: no float

        # Spaces
        low, high = (np.array(limits, np.float32) for limits in (self._hardware.low, self._hardware.high))
        known = vec_env.single_observation_space.spaces  # type: ignore[attr-defined]
        size = sum(known[name].shape[0] for name in self._names)
        self.action_space = spaces.Box(low, high)
        self.observation_space = spaces.Dict(
            {
                "agent_pos": spaces.Box(-np.inf, np.inf, low.shape),
                "environment_state": spaces.Box(-np.inf, np.inf, (size,)),
                **({"pixels": spaces.Dict({name: known[name] for name in cameras})} if cameras else {}),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NumpyObs, dict[str, Any]]:
        unknown = sorted(set(options or {}) - {"lerobot_new_rollout"})  # LeRobot 0.6 passes this one
        if unknown:
            raise ConfigError(f"reset takes no options; got {unknown}")
        super().reset(seed=seed)
        episode = int(self.np_random.integers(_SEEDS)) if seed is None else seed
        obs, _ = self._vec_env.reset(seed=[episode])
        self._running, self._scene = True, self._vec_env.scenes()
        return self._observation(obs), {"is_success": False}

    def step(self, action: NDArray[Any]) -> tuple[NumpyObs, float, bool, bool, dict[str, Any]]:
        # Joint targets as the task's own action.
        if not self._running:
            raise ResetNeeded("there is no episode in progress: call reset() first")
        wanted = torch.as_tensor(np.asarray(action, np.float64))
        if wanted.shape != self.action_space.shape or not torch.isfinite(wanted).all():
            raise ConfigError(f"an action must be {len(self._hardware.low)} finite numbers, not {action}")
        target = self._hardware.from_hardware(self._hardware.clip(wanted))
        own = self._vec_env.targets_to_actions(target[None, None], self._vec_env.observations())[:, 0]

        # The step; after the end of an episode, the env has no next one.
        _, reward, terminated, truncated, info = self._vec_env.step(own)
        self._running = not (terminated[0] or truncated[0])
        self._scene = self._vec_env.scenes() if self._running else info["final_scenes"]
        is_success = bool(info["final_info"]["success_once"][0])
        observation = self._observation(info["final_obs"])
        return observation, float(reward), bool(terminated), bool(truncated), {"is_success": is_success}

    def render(self) -> NDArray[np.uint8] | None:
        """An image [H, W, 3] of the task's overview camera."""
        if self.render_mode != "rgb_array" or self._scene is None:
            return None
        return self._vec_env.render_scenes(self._scene, self._render_size)[0]

    def close(self) -> None:
        self._vec_env.close()

    def _observation(self, obs: Obs) -> NumpyObs:
        joints = self._hardware.to_hardware(obs[JOINTS][0])
        observation: NumpyObs = {
            "agent_pos": joints.float().numpy(),
            "environment_state": torch.cat([obs[name][0] for name in self._names]).numpy(),
        }
        if self._cameras:
            observation["pixels"] = {name: obs[name][0].numpy() for name in self._cameras}
        return observation


def make_envs(
    n_envs: int = 1, use_async_envs: bool = False, suite: str = "so101_paper", **settings: Any
) -> dict[str, dict[int, Any]]:
    """The vector env that LeRobot evaluates on, in its form `{suite: {task index: vector env}}`.

    Args:
        n_envs: number of envs.
        use_async_envs: run each in a process of its own.
        suite: name of the suite in LeRobot's results.
        settings: arguments of `LeRobotEnv`.
    """
    if n_envs < 1:
        raise ConfigError(f"n_envs must be at least 1, not {n_envs}")
    make = [lambda: LeRobotEnv(**settings)] * n_envs
    vector = gymnasium.vector.AsyncVectorEnv if use_async_envs else gymnasium.vector.SyncVectorEnv
    return {suite: {0: vector(make, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP)}}
