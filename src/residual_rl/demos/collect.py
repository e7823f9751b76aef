"""Collection of demonstrations: episodes of a policy or a planner, in the order of their seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.demos.episode import Array, Demo, FailedEpisode, Planner
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
    EpisodeSeed,
    NonNegativeFloat,
    NumEnvs,
    PositiveInt,
)

NUM_ENVS = 64
"""Default number of envs stepped together, if their episodes fit into memory."""
MAX_TRIES = 20
"""With `only_success`: largest number of episodes run per requested one."""
MAX_FAILED = 20
"""Number of consecutive failed episodes after which collection stops with an error."""
_BUFFER_BYTES = 1 << 30
"""Memory limit of the running episodes of all envs [bytes]."""


@dataclass(frozen=True)
class CollectCfg(CheckedCfg):
    """Settings of the collection of demonstrations."""

    n_episodes: PositiveInt = 200
    """Number of episodes to store."""
    only_success: bool = False
    """Store successful episodes only; at most 20 times `n_episodes` are run."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of the noise on executed actions, in units of the action change of a residual of 1.
    The intended actions are stored as well, as targets of imitation."""
    noise_correlation: Correlation = 0.9
    """Correlation of the noise between consecutive steps, from 0 (white noise, which averages out) to 1."""
    first_seed: EpisodeSeed = DEMO_SEED
    """Seed of the first episode; the others follow. Training and evaluation use other seeds."""
    num_envs: NumEnvs | None = None
    """Number of envs stepped together; the episodes do not depend on it. None: 64, or fewer if their episodes
    need more than 1 GiB."""


@dataclass
class CollectionStats:
    """Counts of the episodes of a collection."""

    ran: int = 0
    """Number of episodes that ended."""
    solved: int = 0
    """Number of successful episodes."""
    failed: list[FailedEpisode] = field(default_factory=list)
    """Episodes of a planner without a result."""


def collect(
    env: ResidualEnv,
    policy: Policy,
    cfg: CollectCfg,
    writer: DemoWriter,
    *,
    with_residual: bool,
    stopped: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, float], None] | None = None,
) -> CollectionStats:
    """Run episodes of `policy` on top of the base policy, and write them to `writer` in the order of their
    seeds.

    If it ends early (by `stopped` or an error), the complete episodes are in `writer`.

    Args:
        env: envs, base policy and composition. The residual's penalty is not part of the stored rewards.
        policy: the residual policy.
        cfg: the settings.
        writer: writes the episodes.
        with_residual: whether to store residual actions.
        stopped: called before each step; true ends the collection.
        on_progress: called with the number of stored episodes and the success rate of all episodes.
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
) -> CollectionStats:
    """`collect` from a planner. Failed episodes are replaced by others, up to `MAX_TRIES` per requested one.

    Raises `ConfigError` if `MAX_FAILED` consecutive episodes fail.
    """
    seeds = range(cfg.first_seed, cfg.first_seed + cfg.n_episodes * MAX_TRIES)
    return _store(planner.episodes(seeds, stopped), cfg, writer, on_progress)


def _store(
    episodes: Iterator[Demo | FailedEpisode],
    cfg: CollectCfg,
    writer: DemoWriter,
    on_progress: Callable[[int, float], None] | None,
) -> CollectionStats:
    collected, failed_in_a_row = CollectionStats(), 0
    for demo in episodes:
        collected.ran += 1
        if isinstance(demo, FailedEpisode):
            collected.failed.append(demo)
            failed_in_a_row += 1
        else:
            failed_in_a_row = 0
            collected.solved += bool(demo.succeeded)
            if demo.succeeded or not cfg.only_success:
                writer.add(demo)
        if on_progress is not None:
            on_progress(writer.num_episodes, collected.solved / collected.ran)
        if writer.num_episodes == cfg.n_episodes:
            break
        if failed_in_a_row == MAX_FAILED:
            last = collected.failed[-1]
            raise ConfigError(
                f"{MAX_FAILED} consecutive episodes failed; the last one, of seed {last.seed}: {last.why}"
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
    """Run the episodes of `seeds`, each once, and yield them in this order, so that short ones are not
    favoured.

    If it ends early, by `stopped()` or an error, the complete episodes are still yielded.
    """
    # The residual's penalty is not a reward of the task.
    env.penalty = 0.0
    action_noise = ActionNoise(env.vec_env, noise, noise_correlation)
    env.step_hook = action_noise
    env_ids = np.arange(env.num_envs)
    position = np.full(env.num_envs, -1)  # [B]: index into `seeds` of each env's episode; -1: none
    coming = iter(range(len(seeds)))
    recorder = _Recorder(env.vec_env, action_noise, with_residual)
    done: dict[int, Demo] = {}
    due = 0

    def begin(at: NDArray[np.int64]) -> None:
        """Record that new episodes have begun in the envs `at` (ascending), which drew the next seeds in
        order."""
        position[at] = [next(coming, -1) for _ in at]
        running = at[position[at] >= 0]
        action_noise.restart(running, [seeds[i] for i in position[running]])
        recorder.begin(running)

    def steps() -> Iterator[tuple[Transition, dict[str, Any]]]:
        while (position >= 0).any() and not stopped():
            yield from env.steps(policy(env.obs))

    # Step the envs; episodes that end early wait in `done` for those before them.
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
                        "this vec_env does not draw its episode seeds in order, so its episodes cannot be "
                        "identified"
                    )
                done[int(position[env_id])] = recorder.cut(env_id, seed)
            begin(ended)
            while due in done:
                yield done.pop(due)
                due += 1
    except Exception as error:  # noqa: BLE001 (raised below, after the complete episodes)
        failure = error
    finally:
        env.step_hook = None

    # Yield the rest of the complete episodes.
    for i in sorted(done):
        yield done[i]
    if failure is not None:
        raise failure


class _Recorder:
    """Records the running episodes of all envs."""

    def __init__(self, env: VecEnv, action_noise: ActionNoise, with_residual: bool):
        self._env = env
        self._action_noise = action_noise
        self._with_residual = with_residual
        self._names = list(observed(env))
        self._steps = np.zeros(env.num_envs, np.int64)
        self._arrays: dict[str, Array] = {}
        """Arrays by name: observations [B, T + 1, …], the others [B, T, …]."""
        self._draws: list[dict[str, Array]] = [{} for _ in self._steps]
        self._states: list[dict[str, Array]] = [{} for _ in self._steps]

    def begin(self, env_ids: NDArray[np.int64]) -> None:
        """Start recording new episodes in the envs `env_ids`."""
        self._steps[env_ids] = 0
        for name in self._names:
            self._put(f"obs/{name}", env_ids, self._action_noise.obs[name], 1)
        draws, states = _numpy(self._env.episode), _numpy(self._env.env_states())
        for env_id in env_ids:
            self._draws[env_id] = {name: value[env_id].copy() for name, value in draws.items()}
            self._states[env_id] = {name: value[env_id : env_id + 1].copy() for name, value in states.items()}

    def step(self, transition: Transition, info: dict[str, Any]) -> None:
        """Record one step of the envs that were stepped."""
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
        """The recorded episode of the env `env_id`, which has ended."""
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


def max_envs_in_memory(env: VecEnv) -> int:
    """The number of envs whose running episodes fit into 1 GiB of memory."""
    spaces = cast(Any, env.single_observation_space).spaces.values()
    step = sum(math.prod(space.shape) * space.dtype.itemsize for space in spaces)
    return max(1, _BUFFER_BYTES // (step * (env.max_episode_steps + 1)))
