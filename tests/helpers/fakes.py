"""A fast vec_env that passes the contract tests, and base policies that record their queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from torch import Tensor

from residual_rl.envs.vec_env import EpisodeSeeds, VecEnv
from residual_rl.errors import ConfigError
from residual_rl.registry import BasePolicySpec, TaskSpec
from residual_rl.types import BasePolicy, Obs, State, check_finite
from residual_rl.utils.seeding import uniform


@dataclass(frozen=True)
class PointCfg:
    """A point in the plane must move close to the origin."""

    max_episode_steps: int = 10
    defect: str = ""
    """A defect of the env, for tests of its detection."""


class PointEnv(VecEnv):
    """A point [m] that an action of 1 moves by 0.1 m, plus a drift that depends on the seed. An episode
    succeeds within 0.15 m of the origin.

    An env without an episode (seed -1) does not move. Arithmetic is elementwise, so that results do not
    depend on B.
    """

    def __init__(self, cfg: PointCfg, num_envs: int, num_threads: int = 0, device: str = "cpu"):
        self.cfg, self.num_envs, self.device = cfg, num_envs, torch.device(device)
        self.max_episode_steps, self.control_hz = cfg.max_episode_steps, 10.0
        self.action_unit_name, self.action_unit = "m", torch.full((2,), 0.1)
        self.success_terminates = cfg.defect != "goes on after success"
        self.deterministic = cfg.defect != "undeterministic"
        bounds = {"state": (5, 100.0), "position": (2, 100.0), "joint_position": (2, 100.0)}
        self.single_observation_space = spaces.Dict(
            {n: spaces.Box(-b, b, (size,), np.float32) for n, (size, b) in bounds.items()}
        )
        self.single_action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.episode_seeds = EpisodeSeeds()
        self._seed = torch.full((num_envs,), -1)
        self._length = torch.zeros(num_envs, dtype=torch.int64)
        self._return = torch.zeros(num_envs)
        self._position = torch.zeros(num_envs, 2)
        self._wind = torch.zeros(num_envs)
        self._begun = False
        self.steps_taken = 0

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        mask: Tensor | None = None,
        options: dict[str, Any] | None = None,
    ) -> Any:
        if options:
            raise ConfigError("reset takes no options")
        if mask is not None and not self._begun:
            raise ConfigError("the first reset must include all envs")
        self._begun = True
        env_ids = torch.arange(self.num_envs) if mask is None else mask.nonzero().flatten()
        if seed is None:
            seeds = self.episode_seeds.draw(len(env_ids))
        elif isinstance(seed, int):
            seeds = seed + env_ids
            self.episode_seeds.use_counter(seed + self.num_envs)
        else:
            seeds = torch.tensor(list(seed))
            if len(seeds) != len(env_ids):
                raise ConfigError(f"{len(env_ids)} envs are reset but {len(seeds)} seeds were given")
        self._start(env_ids, seeds)
        return self.observations(), {"seed": self._seed.clone()}

    def _start(self, env_ids: Tensor, seeds: Tensor) -> None:
        draws = uniform(seeds, stream=0, n=3).float()
        if self.cfg.defect == "same start":
            draws = torch.full_like(draws, 0.25)
        if self.cfg.defect == "start depends on slot":
            draws[:, 0] = env_ids / 100
        self._position = self._position.index_copy(0, env_ids, 2.0 * draws[:, :2] - 1.0)
        self._wind = self._wind.index_copy(0, env_ids, 0.02 * draws[:, 2] - 0.01)
        self._seed = self._seed.index_copy(0, env_ids, seeds)
        self._length = self._length.index_fill(0, env_ids, 0)
        self._return = self._return.index_fill(0, env_ids, 0.0)

    @property
    def active(self) -> Tensor:
        return self._seed >= 0

    def observations(self) -> Obs:
        position = self._position.clone()
        if self.cfg.defect == "out of bounds":
            position = position + 200.0
        state = torch.cat(
            [position, self._wind[:, None], self._length[:, None].float(), self._return[:, None]], 1
        )
        return {
            "state": state,
            "position": position,
            "joint_position": torch.stack([self._wind, self._wind], 1),
        }

    def step(self, actions: Tensor, mask: Tensor | None = None) -> Any:
        if not self._begun:
            raise ConfigError("step was called before reset")
        if actions.shape != (self.num_envs, 2):
            raise ConfigError(f"actions must have shape {(self.num_envs, 2)}, not {tuple(actions.shape)}")
        check_finite("action", actions)
        self.steps_taken += 1
        active = self.active if mask is None else self.active & mask
        move = 0.1 * actions.clamp(-1.0, 1.0) + torch.stack([self._wind, torch.zeros_like(self._wind)], 1)
        if self.cfg.defect == "depends on B":
            move = move * (1.0 + self.num_envs * 1e-4)
        self._position = torch.where(active[:, None], self._position + move, self._position)
        if self.cfg.defect == "sags":
            self._wind = self._wind + 0.001
        distance = (self._position[:, 0].square() + self._position[:, 1].square()).sqrt()
        success = active & (distance < 0.15)
        terms = {"success": 5.0 * success, "distance": -distance}
        if self.cfg.defect == "dead term":
            terms["dead"] = torch.zeros_like(distance)
        if mask is not None:
            terms = {name: torch.where(mask, value, 0.0) for name, value in terms.items()}
        reward = torch.zeros_like(distance)
        for value in terms.values():
            reward = reward + value
        if self.cfg.defect == "unnamed reward":
            reward = reward + 0.5
        self._length = self._length + active
        self._return = self._return + reward * active
        terminated = success & (self.cfg.defect not in ("never terminates", "goes on after success"))
        if self.cfg.defect == "fails outside":
            terminated = terminated | (active & (distance > 1.1))
        truncated = (self._length >= self.max_episode_steps) & ~terminated
        ended = terminated | truncated
        obs = self.observations()
        metrics = {"distance": distance}
        final = {
            "seed": self._seed,
            "episode_return": self._return,
            "episode_length": self._length,
            "success_once": success,
            "success_at_end": success,
            **metrics,
        }
        info = {"reward_terms": terms, "task_metrics": metrics, "final_obs": obs, "_final_obs": ended}
        info |= {"final_info": final, "_final_info": ended}
        if ended.any():
            env_ids = ended.nonzero().flatten()
            self._start(env_ids, self.episode_seeds.draw(len(env_ids)))
            obs = self.observations()
        return obs, reward, terminated, truncated, info

    def scenes(self) -> Tensor:
        return self._position.clone()

    _COUNTERS = ("_seed", "_length", "_return", "_position", "_wind")

    def state_dict(self) -> State:
        return {
            "seeds": self.episode_seeds.state_dict(),
            **{name: getattr(self, name).clone() for name in self._COUNTERS},
        }

    def load_state_dict(self, state: State) -> None:
        if len(state["_seed"]) != self.num_envs:
            raise ConfigError(f"the saved state has {len(state['_seed'])} envs, this env {self.num_envs}")
        self._begun = True
        self.episode_seeds.load_state_dict(state["seeds"])
        for name in self._COUNTERS:
            setattr(self, name, state[name].clone())


POINT_TASK = TaskSpec(
    id="point",
    summary="a point",
    config="fakes:PointCfg",
    make="fakes:PointEnv",
    base_policy="homing",
    oracle="homing",
)


class Homing(BasePolicy):
    """Moves towards the origin at `speed`."""

    inputs = {"position": (2,)}  # noqa: RUF012

    def __init__(self, speed: float = 1.0):
        self.speed = speed

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        return (-10.0 * self.speed * obs["position"]).clamp(-1.0, 1.0)[:, None]


def make_homing(cfg: None, env: VecEnv) -> Homing:
    return Homing()


HOMING = BasePolicySpec(id="homing", summary="moves towards the origin", make="fakes:make_homing")


class Recorder(BasePolicy):
    """Records its calls as `("query", env_ids, positions)` and `("reset", env_ids)`.

    Action k of the n-th chunk since the env's reset is `(0.1·n, 0.01·k)`.
    """

    inputs = {"position": (2,)}  # noqa: RUF012

    def __init__(self, num_envs: int, chunk_size: int = 1, num_action_steps: int = 1):
        self.chunk_size, self.num_action_steps = chunk_size, num_action_steps
        self.calls: list[tuple[Any, ...]] = []
        self._num_queries = torch.zeros(num_envs)

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        self.calls.append(("query", env_ids.tolist(), obs["position"].tolist()))
        self._num_queries = self._num_queries.index_add(0, env_ids, torch.ones(len(env_ids)))
        first = 0.1 * self._num_queries[env_ids, None].expand(-1, self.chunk_size)
        second = 0.01 * torch.arange(self.chunk_size).expand(len(env_ids), -1)
        return torch.stack([first, second], -1)

    def reset(self, mask: Tensor) -> None:
        self.calls.append(("reset", mask.nonzero().flatten().tolist()))
        self._num_queries = self._num_queries.masked_fill(mask, 0.0)

    def state_dict(self) -> State:
        return {"num_queries": self._num_queries.clone()}

    def load_state_dict(self, state: State) -> None:
        self._num_queries = state["num_queries"].clone()
