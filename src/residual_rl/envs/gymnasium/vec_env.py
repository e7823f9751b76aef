"""Gymnasium envs as a `VecEnv`: termination, truncation, resets, seeds and resuming."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.envs.action_history import ActionHistory, warn_unless_equal
from residual_rl.envs.episodes import RunningEpisodes
from residual_rl.envs.gymnasium.config import GymnasiumEnvCfg
from residual_rl.envs.spaces import array_space
from residual_rl.envs.vec_env import EpisodeSeeds, VecEnv
from residual_rl.envs.workers.pool import WorkerPool
from residual_rl.envs.workers.shared_memory import ArraySpec
from residual_rl.errors import ConfigError
from residual_rl.types import Obs, State, check_finite
from residual_rl.utils.seeding import simulator_seeds

_WORKER = Path(__file__).with_name("env_worker.py")
_CLOSE_SECONDS = 5.0
"""Time that the envs have for their `close` [s]."""
_DEFAULT_HZ = 30.0
"""Rate of envs that do not state theirs [Hz]."""
_log = logging.getLogger(__name__)

_probes: dict[str, dict[str, Any]] = {}
"""Results of the probe by the worker's settings: the envs of evaluations need not be probed again."""


class GymVecEnv(VecEnv):
    """B envs of somebody's Gymnasium env, stepped by worker processes.

    Observations: `state` [O] float32 is all numbers of the observation side by side. Each entry of a nested
    observation is also there under its keys, joined by underscores (`observation`, `agent_pos`), and images
    are uint8 [H, W, C]. Categories are one-hot. An env whose adapter has an `expert` also has
    `expert_action` [A]. The env's own metrics are the numbers in its `info`, with the prefix `env_`.

    Where the env executes another action than it was sent and says so in `info["executed_action"]`, that
    entry of the `info` of `step` is [B, A], normalised; without such envs it is missing.

    A saved state consists of the seeds and actions of the running episodes. Loading it replays them and
    continues them bit for bit, if a probe has found that the env repeats episodes (`deterministic`);
    otherwise it starts new episodes.

    Args:
        cfg: the env's settings.
        num_envs: B.
        num_workers: number of processes; at most B are started.

    Raises:
        ConfigError: the env cannot be created or used.
        WorkerError: a worker failed; the pool is then closed. Other methods raise it as well.
    """

    action_unit_name = "env unit"

    def __init__(self, cfg: GymnasiumEnvCfg, num_envs: int, num_workers: int = 1):
        if not cfg.env_id:
            raise ConfigError("name the env with --env-id ID, and --env-modules if a module registers it")
        if num_envs < 1:
            raise ConfigError(f"num_envs must be at least 1, not {num_envs}")
        self.cfg, self.num_envs, self.device = cfg, num_envs, torch.device("cpu")
        self._pool = WorkerPool(
            cfg.env_id,
            f"{_WORKER}:make",
            cfg.worker_settings(),
            num_envs,
            max(num_workers, 1),
            python=cfg.python or sys.executable,
            preload=("gymnasium",),
            close_seconds=_CLOSE_SECONDS,
        )
        try:
            self._describe(self._pool.descriptions[0])
        except BaseException:
            self._pool.close()
            raise
        # the state of the running episodes
        self.episode_seeds = EpisodeSeeds()
        self._episodes = RunningEpisodes(num_envs, self.device)
        self._history = ActionHistory(num_envs, len(self.action_unit))
        self._frame_shape: tuple[int, ...] | None = None
        """Shape of the frames; None until `scenes` was called."""
        self._renders = False
        """Whether `scenes` was called since the last step. The next one then returns `final_scenes`: frames
        are slow to render, and other callers do not need them."""
        self._obs: Obs = {}

    def _describe(self, description: dict[str, Any]) -> None:
        """Set the properties of the env, and create the shared arrays."""
        # properties
        cfg = self.cfg
        if description["max_episode_steps"] is None:
            raise ConfigError(f"{cfg.env_id} has no time limit; set one with --max-episode-steps")
        self.max_episode_steps = description["max_episode_steps"]
        self.success_terminates = cfg.end_at_success
        self.task_name = cfg.env_id
        if cfg.python:
            self.software = dict(sorted(description["software"].items()))
        self.control_hz = cfg.control_hz or description["control_hz"] or _DEFAULT_HZ
        self.action_unit = torch.tensor(description["action_unit"], dtype=torch.float32)
        self.action_centre = torch.tensor(description["action_centre"], dtype=torch.float32)
        probe = self._probe(description)
        self.deterministic = not probe["difference"]
        self._reports_action = probe["reports_action"]
        self._metrics = tuple(f"env_{name}" for name in probe["metrics"])
        # the shared arrays, of one env
        observations = {
            name: ArraySpec(tuple(shape), dtype)
            for name, (shape, dtype) in description["observations"].items()
        }
        action = ArraySpec((len(self.action_unit),), "float32")
        shared = {
            "active": ArraySpec((), "bool"),
            "seed": ArraySpec((), "int64"),
            "action": action,
            "reward": ArraySpec((), "float32"),
            "flags": ArraySpec((3,), "bool"),  # success, terminated, truncated
            "metrics": ArraySpec((len(self._metrics),), "float32"),
            **{f"obs/{name}": spec for name, spec in observations.items()},
        }
        if self._reports_action:
            shared["executed_action"] = action
        self._pool.call("use_metrics", names=probe["metrics"])
        self._arrays = self._pool.share(shared)
        self._obs_arrays = {name: self._arrays[f"obs/{name}"] for name in observations}
        # the spaces, of one env and of all
        boxes = {name: array_space(spec.shape, spec.dtype) for name, spec in observations.items()}
        self._set_spaces(spaces.Dict(boxes))

    def _probe(self, description: dict[str, Any]) -> dict[str, Any]:
        """The result of `probe.probe` for these settings; its findings are logged once."""
        cfg = self.cfg
        key = json.dumps([cfg.python, cfg.worker_settings()], sort_keys=True)
        if key not in _probes:
            _probes[key] = self._pool.call("probe", [True] + [False] * (self.num_envs - 1))[0]
            if _probes[key]["difference"]:
                _log.warning(
                    "%s does not repeat an episode of equal seed and actions (%s differs): evaluations vary,"
                    " and resuming starts new episodes; a method `seed` of an adapter may help",
                    cfg.env_id,
                    _probes[key]["difference"],
                )
            if cfg.control_hz is None and description["control_hz"] is None:
                _log.warning(
                    "%s does not state its rate; %g Hz is assumed: set --control-hz", cfg.env_id, _DEFAULT_HZ
                )
            if description["ignored"]:
                ignored = ", ".join(description["ignored"])
                _log.warning("%s: observations without numbers are left out: %s", cfg.env_id, ignored)
        return _probes[key]

    # --- the contract ---------------------------------------------------------------------------------------

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        mask: Tensor | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Obs, dict[str, Any]]:
        if options:
            raise ConfigError(f"reset takes no options in this env; got {', '.join(sorted(options))}")
        self._start_episodes(*self._to_reset(seed, mask, is_first=not self._obs))
        return dict(self._obs), {"seed": self._episodes.seed.clone()}

    def step(
        self, actions: Tensor, mask: Tensor | None = None
    ) -> tuple[Obs, Tensor, Tensor, Tensor, dict[str, Any]]:
        # check the actions
        actions = self._to_execute(actions, is_first=not self._obs)
        with self._context(actions):
            check_finite("action", actions)
        active = self.active if mask is None else self.active & mask

        # execute them; `action` belongs to the history from now on
        action = actions.clamp(-1.0, 1.0)
        self._execute(action, active)
        reward = self._read("reward") * active
        success, terminated, truncated = (self._read("flags") & active[:, None]).unbind(1)
        metrics = dict(zip(self._metrics, self._read("metrics").unbind(1), strict=True))
        obs = self._read_obs()
        self._check(obs, reward, action)

        # count the step
        is_over = self._episodes.length + 1 >= self.max_episode_steps
        truncated = (truncated | (is_over & active)) & ~terminated
        ended = terminated | truncated
        if self.deterministic:  # a saved state consists of the actions
            self._history.append(action, active)
        self._episodes.advance(active, reward, success)
        info = self._episodes.info({self._reward_term: reward}, metrics, obs, success, ended)
        if self._reports_action:
            info["executed_action"] = self._read("executed_action")
        self._obs = obs

        # reset the envs whose episode ended
        renders, self._renders = self._renders, False
        if ended.any():
            if renders:
                info["final_scenes"] = self.scenes()
            env_ids = ended.nonzero().flatten()
            self._start_episodes(env_ids, self.episode_seeds.draw(len(env_ids)))
        return dict(self._obs), reward, terminated, truncated, info

    @property
    def active(self) -> Tensor:
        return self._episodes.active

    def observations(self) -> Obs:
        return dict(self._obs)

    @property
    def step_info_names(self) -> dict[str, tuple[str, ...]]:
        return {"reward_terms": (self._reward_term,), "task_metrics": self._metrics}

    def scenes(self) -> Tensor:
        """[B, H·W·3] uint8: frames of the envs as they are now, since their states cannot be set."""
        if not self._obs:
            raise ConfigError("scenes was called before reset")
        if not self.cfg.render:
            raise ConfigError("the frames of this env are needed: use --render")
        if self._frame_shape is None:
            first = [True] + [False] * (self.num_envs - 1)
            self._frame_shape = tuple(self._pool.call("frame_shape", first)[0])
            self._arrays |= self._pool.share({"frame": ArraySpec(self._frame_shape, "uint8")})
        self._renders = True
        self._call("render", self.active)
        return self._read("frame").flatten(1)

    def render_scenes(
        self, scenes: Tensor, size: tuple[int, int], camera: str | None = None
    ) -> NDArray[np.uint8]:
        """See `VecEnv.render_scenes`. The frames are resized; the env itself chooses the camera."""
        from PIL import Image

        if camera is not None:
            raise ConfigError(f"{self.task_name} has no cameras to choose from, so leave out the camera")
        if self._frame_shape is None:
            raise ConfigError("render_scenes was called before scenes")
        frames = scenes.reshape(-1, *self._frame_shape).numpy()
        return np.stack([np.asarray(Image.fromarray(frame).resize(size[::-1])) for frame in frames])

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ARG002
        self._pool.close()

    # --- resuming -------------------------------------------------------------------------------------------

    def state_dict(self) -> State:
        actions, executed = self._history.played(self._episodes.length)
        return {
            "episode_seeds": self.episode_seeds.state_dict(),
            "episodes": self._episodes.state_dict(),
            "obs": {name: value.clone() for name, value in self._obs.items()},
            "actions": actions,
            "executed": executed,
        }

    def load_state_dict(self, state: State) -> None:
        self._episodes.load_state_dict(state["episodes"])
        self.episode_seeds.load_state_dict(state["episode_seeds"])
        if not state["obs"]:  # saved before the first reset
            return
        for name, value in state["obs"].items():
            self._obs_arrays[name][:] = value.numpy()  # what idle envs keep
        if not self.deterministic:
            self._start_episodes(torch.arange(self.num_envs), self.episode_seeds.draw(self.num_envs))
            return
        # replay the running episodes from their seeds
        self._history.load(state["actions"], state["executed"])
        running = self.active.nonzero().flatten()
        self._reset_envs(running, self._episodes.seed[running])
        for actions, executed in zip(*self._history.played(self._episodes.length), strict=True):
            self._execute(actions, executed)
        self._obs = self._read_obs()
        warn_unless_equal(self._obs, state["obs"], self.task_name)

    # --- parts ----------------------------------------------------------------------------------------------

    @property
    def _reward_term(self) -> str:
        return "success" if self.cfg.reward_mode == "sparse" else "env"

    def _start_episodes(self, env_ids: Tensor, seeds: Tensor) -> None:
        # a negative seed leaves its env idle
        begins = seeds >= 0
        self._reset_envs(env_ids[begins], seeds[begins])
        self._episodes.begin(env_ids, seeds)
        self._history.forget_ended(self._episodes.length)
        self._obs = self._read_obs()

    def _reset_envs(self, env_ids: Tensor, seeds: Tensor) -> None:
        active = torch.zeros(self.num_envs, dtype=torch.bool)
        active[env_ids] = True
        self._arrays["seed"][env_ids.numpy()] = simulator_seeds(seeds).numpy()
        self._call("reset", active)

    def _execute(self, action: Tensor, active: Tensor) -> None:
        self._arrays["action"][:] = action.numpy()
        self._call("step", active)

    def _call(self, method: str, active: Tensor) -> None:
        self._arrays["active"][:] = active.numpy()
        self._pool.call(method, active.tolist())

    def _read(self, name: str) -> Tensor:
        """A copy of a shared array, which the workers overwrite in the next step."""
        return torch.from_numpy(self._arrays[name].copy())

    def _read_obs(self) -> Obs:
        return {name: torch.from_numpy(array.copy()) for name, array in self._obs_arrays.items()}

    def _check(self, obs: Obs, reward: Tensor, action: Tensor) -> None:
        """Raise `NonFiniteError` if an observation or reward is not finite."""
        floats = {"reward": reward} | {n: v for n, v in obs.items() if v.is_floating_point()}
        if math.isfinite(sum(value.sum().item() for value in floats.values())):
            return
        with self._context(action):
            for name, value in floats.items():
                check_finite(name, value)

    def _context(self, action: Tensor) -> AbstractContextManager[None]:
        """See `RunningEpisodes.context`; what is known of the steps before are the actions."""
        return self._episodes.context(action, lambda: self._history.dump(self._episodes.length))
