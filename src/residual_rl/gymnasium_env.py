"""A task as a Gymnasium env or vector env with NumPy arrays, for use with other libraries."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.config import TrainCfg, from_plain, replace_fields
from residual_rl.envs.mujoco.gl_backend import display_is_named
from residual_rl.envs.spaces import CHUNK_OBS
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.factory import make_residual_env
from residual_rl.types import Obs, Transition
from residual_rl.visualization.viewer import LiveViewer, require_display

if TYPE_CHECKING:
    from residual_rl.residual_env import ResidualEnv

NumpyObs = NDArray[np.float32] | dict[str, NDArray[Any]]

_SEEDS = 1 << 62
"""Upper bound of the seeds drawn for the episodes after the first."""


class GymnasiumEnv(gymnasium.Env[NumpyObs, NDArray[np.float32]]):
    """A single env of a registered task.

    Without a base policy, the action is the task's action in [-1, 1]. With a base policy, the action is the
    residual: the env executes `clip(base_action + residual_scale · action)`, the observation includes the
    base action, and the reward includes the residual penalty, exactly as in this package's own training.

    The observation is a flat `Box`: the task's `state`, followed by the base action. With cameras, it is a
    `Dict` of these and the images; with `obs_keys`, a `Dict` of the named observations.

    The `info` of `step` has `is_success`, the executed `action`, and the `reward_terms` and `task_metrics` by
    name. That of `reset` has the same entries, with zeros, and NaN for the metrics.

    `reset(seed=s)` starts the episode with seed `s`, which equals the episode of that seed in the batched
    env. Further resets draw their seeds from a generator seeded with `s`, so that envs with consecutive seeds
    do not run the same episodes.

    `gymnasium.make(id, max_episode_steps=n)` adds Gymnasium's `TimeLimit`, which can shorten the task's limit
    but not extend it.

    Args:
        task: id of the task.
        base_policy: id of a base policy.
        residual_scale: bound of the residual; defaults to the task's. Requires a base policy.
        residual_penalty: weight of `‖residual_scale · residual_action‖²` in the reward; defaults to the
            task's. Requires a base policy.
        render_mode: `rgb_array`, or `human` for MuJoCo's viewer.
        render_camera: camera used by `render`; defaults to the task's overview camera.
        render_size: height and width of rendered images [pixels].
        obs_keys: names of the observations: those of the task, and with a base policy `base_action`,
            `base_chunk` and `chunk_position` (see `BasePolicyExecutor`).
        settings: fields of the task's settings, for example `tolerance` or `obs_mode`.

    Raises:
        UnknownNameError: unknown task, base policy, setting or observation.
        ConfigError: incompatible settings, or render mode `human` without a display.
    """

    # Gymnasium expects a class attribute.
    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 30}  # noqa: RUF012

    def __init__(
        self,
        task: str,
        base_policy: str | None = None,
        residual_scale: float | None = None,
        residual_penalty: float | None = None,
        render_mode: Literal["rgb_array", "human"] | None = None,
        render_camera: str | None = None,
        render_size: tuple[int, int] = (480, 640),
        obs_keys: Sequence[str] | None = None,
        **settings: Any,
    ):
        self.render_mode = render_mode
        self._render_camera = render_camera
        self._render_size = render_size
        modes = self._find_render_modes()
        # The wrapped env
        residual = {"residual_scale": residual_scale, "residual_penalty": residual_penalty}
        cfg = _make_cfg(task, base_policy, residual, settings)
        self.residual_env: ResidualEnv = make_residual_env(cfg, 1, chunk_obs=_names_chunk(obs_keys))
        """The wrapped env with B = 1."""
        # Spaces
        self.metadata = {"render_modes": modes, "render_fps": self.residual_env.vec_env.control_hz}
        self._layout = _Layout(self.residual_env, task, base_policy is not None, obs_keys)
        self.observation_space = self._layout.space
        self.action_space = self.residual_env.vec_env.single_action_space
        # State
        self._reset_info: dict[str, Any] = {}
        self._started = False
        self._running = False
        self._scene: Tensor | None = None
        self._viewer: LiveViewer | None = None

    def _find_render_modes(self) -> list[str]:
        """The render modes that work on this machine. Gymnasium's env checker tries every declared mode."""
        if self.render_mode == "human":
            require_display()
        modes = ["rgb_array", "human"] if display_is_named() else ["rgb_array"]
        if self.render_mode not in (None, *modes):
            raise ConfigError(f"render_mode must be one of {', '.join(modes)}, not {self.render_mode!r}")
        return modes

    # --- Gymnasium's methods --------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NumpyObs, dict[str, Any]]:
        if options:
            raise ConfigError(f"reset takes no options; got {sorted(options)}")
        super().reset(seed=seed)
        env = self.residual_env
        if seed is not None:
            env.reset(seed)
        elif not self._started:
            env.reset(self._draw_seed())
        elif self._running:
            # Uses the seed queued below; after the end of an episode, autoreset has already done so
            env.reset()
        env.vec_env.episode_seeds.use_list([self._draw_seed()])
        if not self._started:
            self._reset_info = self._layout.reset_info(self.residual_env)
        self._started = self._running = True
        if self.render_mode is not None:
            self._show(env.vec_env.scenes()[0])
        return self._layout.rows(env.obs, 0), _row(self._reset_info, 0)

    def step(self, action: NDArray[np.float32]) -> tuple[NumpyObs, float, bool, bool, dict[str, Any]]:
        if not self._running:
            raise ResetNeeded("there is no episode in progress: call reset() first")
        residual = torch.as_tensor(np.asarray(action, np.float32))
        if residual.shape != self.action_space.shape:
            raise ConfigError(
                f"an action must have shape {self.action_space.shape}, not {tuple(residual.shape)}"
            )
        transition, info = self.residual_env.step(residual.clamp(-1.0, 1.0)[None])
        terminated, truncated = bool(transition.terminated), bool(transition.truncated)
        self._running = not (terminated or truncated)
        if self.render_mode is not None:
            self._show(self.residual_env.vec_env.scenes()[0] if self._running else info["final_scenes"][0])
        obs = self._layout.rows(transition.next_obs, 0)
        step_info = _row(self._layout.step_info(transition, info), 0)
        return obs, float(transition.reward), terminated, truncated, step_info

    def render(self) -> NDArray[np.uint8] | None:
        """An image [H, W, 3] in mode `rgb_array`. In mode `human` the viewer is updated by `step` and
        `reset`."""
        if self.render_mode != "rgb_array" or self._scene is None:
            return None
        return self.residual_env.vec_env.render_scenes(
            self._scene[None], self._render_size, self._render_camera
        )[0]

    def close(self) -> None:
        if self._viewer is not None:
            self._viewer.close()
        self.residual_env.close()

    # --- parts ----------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The simulator's compiled model (MuJoCo: `mujoco.MjModel`)."""
        return self.residual_env.vec_env.model

    def _draw_seed(self) -> int:
        return int(self.np_random.integers(_SEEDS))

    def _show(self, scene: Tensor) -> None:
        self._scene = scene
        if self.render_mode == "human":
            if self._viewer is None:
                self._viewer = LiveViewer(self.model, self.residual_env.vec_env.control_hz)
            self._viewer.show(scene)


class GymnasiumVecEnv(gymnasium.vector.VectorEnv[NumpyObs, NDArray[np.float32], NDArray[Any]]):
    """B envs of a registered task that are stepped together, with NumPy arrays, for `gymnasium.make_vec`.

    Actions, observations and rewards are those of `GymnasiumEnv`, with the batch in front. An env whose
    episode ended is reset in the same step; `final_obs` and `final_info` in `info` are then those of the
    ended episodes, where the mask `_final_obs` [B] is set. `make_vec_env` has the same envs in torch.

    `reset(seed=s)` starts env i with seed `s + i`, and later episodes count on from there.

    Args:
        task: id of the task.
        num_envs: B.
        base_policy: see `GymnasiumEnv`.
        residual_scale: see `GymnasiumEnv`.
        residual_penalty: see `GymnasiumEnv`.
        num_threads: simulator threads; 0 means one per CPU core.
        obs_keys: see `GymnasiumEnv`.
        settings: fields of the task's settings.

    Raises:
        UnknownNameError: unknown task, base policy, setting or observation.
        ConfigError: incompatible settings.
    """

    metadata: dict[str, Any] = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        base_policy: str | None = None,
        residual_scale: float | None = None,
        residual_penalty: float | None = None,
        num_threads: int = 0,
        obs_keys: Sequence[str] | None = None,
        **settings: Any,
    ):
        residual = {"residual_scale": residual_scale, "residual_penalty": residual_penalty}
        cfg = _make_cfg(task, base_policy, residual, settings)
        cfg = replace_fields(cfg, {"run.num_threads": num_threads})
        self.num_envs = num_envs
        self.residual_env: ResidualEnv = make_residual_env(cfg, num_envs, chunk_obs=_names_chunk(obs_keys))
        """The wrapped env."""
        self._layout = _Layout(self.residual_env, task, base_policy is not None, obs_keys)
        self.single_observation_space = self._layout.space
        self.single_action_space = self.residual_env.vec_env.single_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NumpyObs, dict[str, Any]]:
        if options:
            raise ConfigError(f"reset takes no options; got {sorted(options)}")
        obs = self.residual_env.reset(seed)
        return self._layout.rows(obs), self._layout.reset_info(self.residual_env)

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[NumpyObs, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        if not self.residual_env.obs:
            raise ResetNeeded("there are no episodes in progress: call reset() first")
        residual = torch.as_tensor(np.asarray(actions, np.float32))
        if residual.shape != self.action_space.shape:
            raise ConfigError(
                f"actions must have shape {self.action_space.shape}, not {tuple(residual.shape)}"
            )
        transition, info = self.residual_env.step(residual.clamp(-1.0, 1.0))
        step_info = self._layout.step_info(transition, info)
        ended = info["_final_info"].cpu().numpy()
        if ended.any():
            final_obs = self._layout.rows(transition.next_obs)
            step_info |= {"final_info": dict(step_info), "final_obs": final_obs}
            step_info |= {"_final_info": ended, "_final_obs": ended}
        return (
            self._layout.rows(self.residual_env.obs),
            transition.reward.double().cpu().numpy(),
            transition.terminated.cpu().numpy(),
            transition.truncated.cpu().numpy(),
            step_info,
        )

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ARG002
        self.residual_env.close()


class _Layout:
    """Observations and infos of a residual env as NumPy arrays with the batch in front.

    Observations are a flat array of the task's `state` and, with a base policy, the base action. They are a
    dict of these and the images with cameras, and of the observations `obs_keys` if these are given.
    """

    def __init__(self, env: ResidualEnv, task: str, has_base_policy: bool, obs_keys: Sequence[str] | None):
        known: dict[str, Any] = dict(env.observation_space.spaces)
        self._has_base_policy = has_base_policy
        if not has_base_policy:
            del known["base_action"]
        images = [name for name, space in known.items() if space.dtype == np.uint8]
        self._names = [name for name in ("state", "base_action") if name in known] + images
        if obs_keys is not None:
            self._names = list(obs_keys)
            for name in self._names:
                if name not in known:
                    raise UnknownNameError("observation", name, known)
        self._is_dict = bool(images) or obs_keys is not None
        self.space: spaces.Space[Any]
        """The space of one env."""
        if self._is_dict:
            self.space = spaces.Dict({name: known[name] for name in self._names})
            return
        if "state" not in known:
            raise ConfigError(
                f"task {task!r} has neither `state` nor images as observations; a Gymnasium env needs one of"
                " them"
            )
        low, high = (
            np.concatenate([getattr(known[name], end) for name in self._names]) for end in ("low", "high")
        )
        self.space = spaces.Box(low, high, dtype=np.float32)

    def rows(self, obs: Obs, env_id: int | slice = slice(None)) -> NumpyObs:
        """The observations of all envs, or that of one."""
        if self._is_dict:
            return {name: obs[name][env_id].cpu().numpy().copy() for name in self._names}
        return torch.cat([obs[name][env_id] for name in self._names], -1).cpu().numpy()

    def step_info(self, transition: Transition, info: dict[str, Any]) -> dict[str, Any]:
        """The info of a step."""
        terms = dict(info["reward_terms"])
        if not self._has_base_policy:
            del terms["residual"]
        return {
            "is_success": info["final_info"]["success_once"].cpu().numpy(),
            "action": transition.action.cpu().numpy(),
            "reward_terms": {name: value.cpu().numpy() for name, value in terms.items()},
            "task_metrics": {name: value.cpu().numpy() for name, value in info["task_metrics"].items()},
        }

    def reset_info(self, env: ResidualEnv) -> dict[str, Any]:
        """The same entries before the first step. Some tools need equal entries in all infos."""
        names, num_envs = env.vec_env.step_info_names, env.num_envs
        terms = (*names["reward_terms"], "residual") if self._has_base_policy else names["reward_terms"]
        return {
            "is_success": np.zeros(num_envs, bool),
            "action": np.zeros((num_envs, len(env.vec_env.action_unit)), np.float32),
            "reward_terms": {name: np.zeros(num_envs, np.float32) for name in terms},
            "task_metrics": {name: np.full(num_envs, np.nan, np.float32) for name in names["task_metrics"]},
        }


def _names_chunk(obs_keys: Sequence[str] | None) -> bool:
    return not set(CHUNK_OBS).isdisjoint(obs_keys or ())


def _row(info: dict[str, Any], env_id: int) -> dict[str, Any]:
    """The info of one env, with plain numbers."""
    return {
        name: _row(value, env_id)
        if isinstance(value, dict)
        else value[env_id].copy()
        if value.ndim > 1
        else value[env_id].item()
        for name, value in info.items()
    }


def _make_cfg(
    task: str, base_policy: str | None, residual: dict[str, float | None], settings: dict[str, Any]
) -> TrainCfg:
    given: dict[str, Any] = {name: value for name, value in residual.items() if value is not None}
    if base_policy is None and given:
        raise ConfigError(
            f"{' and '.join(given)} requires a base_policy: without one, the action is the task's own"
        )
    cfg = TrainCfg.default(task, base_policy or "zero")
    # Without a base policy, the action is added to zeros.
    bare: dict[str, Any] = {"residual_scale": 1.0, "residual_penalty": 0.0}
    return dataclasses.replace(
        cfg,
        task=from_plain(type(cfg.task), {**dataclasses.asdict(cfg.task), **settings}),
        residual=dataclasses.replace(cfg.residual, **(bare if base_policy is None else given)),
        run=dataclasses.replace(cfg.run, num_envs=1, num_threads=1),
    )
