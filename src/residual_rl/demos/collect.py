"""Collecting demonstrations: episodes of a policy, each a function of its seed, in the order of the seeds, with noise where asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.demos.episode import Array, Demo, Lost, Planner
from residual_rl.demos.writer import DemoWriter
from residual_rl.envs.action_noise import ActionNoise
from residual_rl.envs.spaces import observed
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.evaluation.evaluate import Policy
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import Obs, Transition
from residual_rl.utils.seeding import DEMO_SEED
from residual_rl.utils.validation import (
    CheckedCfg,
    Correlation,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)

NUM_ENVS = 64
"""Envs stepped together, where their observations fit into memory."""
MAX_TRIES = 20
"""With `only_success`: episodes run at most, for each that is asked for."""
MAX_LOST = 20
"""Episodes that may be lost one after the other before collecting is given up."""
_BUFFER_BYTES = 1 << 30
"""What the running episodes of all envs may hold in memory."""


@dataclass(frozen=True)
class CollectCfg(CheckedCfg):
    """Which episodes to collect, and how."""

    n_episodes: PositiveInt = 200
    """Episodes to store."""
    only_success: bool = False
    """Store solved episodes alone, as many as are asked for; at most 20 times as many are run."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of noise on the executed action, in units of what a residual of 1 may change; what the policy wanted is stored
    beside it, for imitation to learn."""
    noise_correlation: Correlation = 0.9
    """How much of a step's noise stays for the next, from 0 (white noise, which averages out) to 1."""
    first_seed: NonNegativeInt = DEMO_SEED
    """Seed of the first episode; the others count on from it. Training and evaluations use others."""
    num_envs: PositiveInt | None = None
    """Envs stepped together; the episodes do not depend on it. None: 64, or as many as keep their images in 1 GiB."""


@dataclass
class Collected:
    """How collecting went."""

    ran: int = 0
    """Episodes that ended."""
    solved: int = 0
    """Those of them that succeeded."""
    lost: list[Lost] = field(default_factory=list)
    """Those of them that came to nothing."""


def collect(
    env: ResidualEnv,
    policy: Policy,
    cfg: CollectCfg,
    writer: DemoWriter,
    *,
    with_residual: bool,
    stopped: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, float], None] | None = None,
) -> Collected:
    """Run episodes of `policy` on top of the base policy and write them to `writer`, in the order of their seeds.

    What stops it early (`stopped`, or an error) leaves the episodes that were complete in `writer`.

    Args:
        env: envs, base policy and composition; the residual's penalty is no part of the rewards that are stored.
        policy: the residual policy.
        cfg: what to collect.
        writer: takes the episodes.
        with_residual: whether `policy` has a say, so that residual actions are stored.
        stopped: asked before each step.
        on_progress: called with the number of episodes stored and the success rate of all that ran.
    """
    tries = cfg.n_episodes * (MAX_TRIES if cfg.only_success else 1)
    seeds = range(cfg.first_seed, cfg.first_seed + tries)
    episodes = run_episodes(env, policy, seeds, cfg.noise, cfg.noise_correlation, with_residual, stopped)
    return _store(episodes, cfg, writer, on_progress)


def collect_planned(
    planner: Planner,
    cfg: CollectCfg,
    writer: DemoWriter,
    *,
    stopped: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, float], None] | None = None,
) -> Collected:
    """`collect`, from a planner. Another episode is planned for each one that is lost, up to `MAX_TRIES` for each that is asked for.

    Raises `ConfigError` where `MAX_LOST` episodes are lost, one after the other.
    """
    seeds = range(cfg.first_seed, cfg.first_seed + cfg.n_episodes * MAX_TRIES)
    return _store(planner.episodes(seeds, stopped), cfg, writer, on_progress)


def _store(
    episodes: Iterator[Demo | Lost],
    cfg: CollectCfg,
    writer: DemoWriter,
    on_progress: Callable[[int, float], None] | None,
) -> Collected:
    collected, lost_in_a_row = Collected(), 0
    for demo in episodes:
        collected.ran += 1
        if isinstance(demo, Lost):
            collected.lost.append(demo)
            lost_in_a_row += 1
        else:
            lost_in_a_row = 0
            collected.solved += bool(demo.succeeded)
            if demo.succeeded or not cfg.only_success:
                writer.add(demo)
        if on_progress is not None:
            on_progress(writer.num_episodes, collected.solved / collected.ran)
        if writer.num_episodes == cfg.n_episodes:
            break
        if lost_in_a_row == MAX_LOST:
            last = collected.lost[-1]
            raise ConfigError(
                f"{MAX_LOST} episodes came to nothing, one after the other; that of seed {last.seed}: {last.why}"
            )
    return collected


@torch.no_grad()
def run_episodes(
    env: ResidualEnv,
    policy: Policy,
    seeds: Sequence[int],
    noise: float = 0.0,
    noise_correlation: float = 0.0,
    with_residual: bool = True,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Demo]:
    """The episodes of `seeds`, each once, in this order: none overtakes another, so short ones are not favoured.

    When `stopped()` or a failure ends it early, the episodes that were complete by then come first.
    """
    env.penalty = 0.0  # it is the learner's, not the task's
    action_noise = ActionNoise(env.vec_env, noise, noise_correlation)
    env.step_hook = action_noise
    env_ids = np.arange(env.num_envs)
    position = np.full(env.num_envs, -1)  # [B]: which of the `seeds` each world runs; -1: none
    coming = iter(range(len(seeds)))
    recorder = _Recorder(env.vec_env, action_noise, with_residual)
    done: dict[int, Demo] = {}
    due = 0

    def begin(at: NDArray[np.int64]) -> None:
        """Episodes have begun in the envs `at` (ascending), which drew the next seeds one after the other."""
        position[at] = [next(coming, -1) for _ in at]
        running = at[position[at] >= 0]
        action_noise.restart(running, [seeds[i] for i in position[running]])
        recorder.begin(running)

    def steps() -> Iterator[tuple[Transition, dict[str, Any]]]:
        while (position >= 0).any() and not stopped():
            yield from env.steps(policy(env.obs))

    failure: Exception | None = None
    try:
        env.vec_env.episode_seeds.use_list(seeds)
        action_noise.after_step(env.reset())
        begin(env_ids)
        for transition, info in steps():
            recorder.step(transition, info)
            ended = np.flatnonzero(info["_final_info"].cpu().numpy())
            if not len(ended):
                continue
            for env_id in ended.tolist():
                seed = seeds[position[env_id]]
                if int(info["final_info"]["seed"][env_id]) != seed:
                    raise ConfigError(
                        "this env does not hand its seeds to its envs in order: demonstrations cannot be told apart"
                    )
                done[int(position[env_id])] = recorder.cut(env_id, seed)
            begin(ended)
            while due in done:
                yield done.pop(due)
                due += 1
    except Exception as error:  # noqa: BLE001 (raised below, after what was complete)
        failure = error
    finally:
        env.step_hook = None
    for i in sorted(done):
        yield done[i]
    if failure is not None:
        raise failure


class _Recorder:
    """Keeps the running episodes of all envs, and cuts out those that ended."""

    def __init__(self, env: VecEnv, action_noise: ActionNoise, with_residual: bool):
        self._env = env
        self._action_noise = action_noise
        self._with_residual = with_residual
        self._names = list(observed(env))
        self._steps = np.zeros(env.num_envs, np.int64)
        self._arrays: dict[str, Array] = {}
        """[B, T + 1, …] of each observation, [B, T, …] of the rest."""
        self._draws: list[dict[str, Array]] = [{} for _ in self._steps]
        self._states: list[dict[str, Array]] = [{} for _ in self._steps]

    def begin(self, env_ids: NDArray[np.int64]) -> None:
        """The `env_ids` have just begun an episode."""
        self._steps[env_ids] = 0
        for name in self._names:
            self._put(f"obs/{name}", env_ids, self._action_noise.obs[name], 1)
        draws, states = _numpy(self._env.episode), _numpy(self._env.env_states())
        for env_id in env_ids:
            self._draws[env_id] = {name: value[env_id].copy() for name, value in draws.items()}
            self._states[env_id] = {name: value[env_id : env_id + 1].copy() for name, value in states.items()}

    def step(self, transition: Transition, info: dict[str, Any]) -> None:
        """Some envs have taken a step."""
        env_ids = np.flatnonzero(self._action_noise.stepped.cpu().numpy())
        values = {
            "actions": self._action_noise.executed,
            "base_actions": transition.base_action,
            "rewards": transition.reward,
            "terminated": transition.terminated,
            "truncated": transition.truncated,
            "success": info["final_info"]["success_at_end"],
        }
        if not self._action_noise.quiet:
            values["intended_actions"] = self._action_noise.intended
        if self._with_residual:
            values["residual_actions"] = transition.residual_action
        for name, value in values.items():
            self._put(name, env_ids, value, 0)
        self._steps[env_ids] += 1
        for name in self._names:
            self._put(f"obs/{name}", env_ids, transition.next_obs[name], 1)

    def cut(self, env_id: int, seed: int) -> Demo:
        """The episode that ended in `env_id`."""
        steps = int(self._steps[env_id])
        parts = {
            name: value[env_id, :steps].copy()
            for name, value in self._arrays.items()
            if not name.startswith("obs/")
        }
        obs = {name: self._arrays[f"obs/{name}"][env_id, : steps + 1].copy() for name in self._names}
        return Demo(obs=obs, seed=seed, draws=self._draws[env_id], env_states=self._states[env_id], **parts)

    def _put(self, name: str, env_ids: NDArray[np.int64], value: Tensor, more: int) -> None:
        array = value.cpu().numpy()
        if name not in self._arrays:
            self._arrays[name] = np.empty(
                (len(array), self._env.max_episode_steps + more, *array.shape[1:]), array.dtype
            )
        self._arrays[name][env_ids, self._steps[env_ids]] = array[env_ids]


def _numpy(values: Obs) -> dict[str, Array]:
    return {name: value.cpu().numpy() for name, value in values.items()}


def worlds_that_fit(env: VecEnv) -> int:
    """How many envs' running episodes fit into what memory they may have."""
    spaces = cast(Any, env.single_observation_space).spaces.values()
    step = sum(math.prod(space.shape) * space.dtype.itemsize for space in spaces)
    return max(1, _BUFFER_BYTES // (step * (env.max_episode_steps + 1)))
