"""Replay of demonstrations in simulation, with a comparison of success and observations to the stored
ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from residual_rl.demos.episode import Array, Demo, Tree
from residual_rl.demos.reader import Demonstrations
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError
from residual_rl.registry import TASKS, load
from residual_rl.visualization.video import Frame, caption, write_video

DEFAULT_SEED = 0
"""Seed of the quantities that a stored episode does not define."""


@dataclass
class Difference:
    """The largest absolute difference between stored and replayed arrays."""

    value: float = 0.0
    """The difference."""
    name: str = ""
    """Name of the array that differs most; empty if none does."""
    step: int = 0
    """Index of its observation."""

    def update(self, name: str, step: int, stored: Array, now: Array) -> None:
        """Compare the array `name` after `step` steps. NaN on one side, or another shape, counts as
        infinite."""
        value = np.inf
        if stored.shape == now.shape:
            difference = np.abs(stored.astype(np.float64) - now.astype(np.float64))
            value = float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))
        if value > self.value:
            self.value, self.name, self.step = value, name, step

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.name}, step {self.step})" if self.name else "0"


@dataclass
class ReplayResult:
    """Result of the replay of one episode."""

    episode: int
    """Index of the episode."""
    demo_steps: int
    """Number of stored steps."""
    seed: int | None
    """Stored seed."""
    has_draws: bool
    """Whether the episode's draws are stored, and were used to start it."""
    stored_success: bool | None
    """Stored success; None if not stored."""
    success: bool = False
    """Success of the replay."""
    steps: int = 0
    """Number of executed steps, which is smaller than that of stored ones if the env's episode ended
    earlier."""
    start: Difference = field(default_factory=Difference)
    """Difference of the first observation and of the simulator's state."""
    drift: Difference = field(default_factory=Difference)
    """Difference of all observations."""
    scenes: list[Tensor] = field(default_factory=list)
    """The scene of each step, for rendering, if requested."""

    @property
    def reproduced(self) -> bool | None:
        """Whether success is the same as stored; None if it is not stored."""
        return None if self.stored_success is None else self.success == self.stored_success


def make_env(demos: Demonstrations, num_envs: int, num_threads: int = 0) -> VecEnv:
    """Envs of the task of `demos`, with the stored settings.

    Raises:
        ConfigError: the task is not registered.
        CheckpointError: the stored settings or actions do not fit the task of this release.
    """
    cfg, spec = demos.task_cfg, TASKS.get(demos.task_id)
    env: VecEnv = load(spec.make)(cfg, num_envs, num_threads, "cpu")
    if len(env.action_unit) != demos.action_dim:
        env.close()
        raise CheckpointError(
            f"{demos.path} has actions of size {demos.action_dim}, but those of task {spec.id!r} have size "
            f"{len(env.action_unit)}: it was recorded on another robot or with another version of the task"
        )
    return env


def replay(
    env: VecEnv, demos: Demonstrations, episodes: Sequence[int], keep_scenes: bool = False
) -> Iterator[ReplayResult]:
    """Execute the stored actions of `episodes` in `env`, with as many episodes at once as it has envs.

    An episode starts with its stored seed and draws. In files of ManiSkill with an unknown seed, it starts in
    the stored state of the simulator. Everything else is that of seed 0. It ends with the env's episode or
    with the last stored action.

    Args:
        env: envs made with `make_env`.
        demos: the demonstrations.
        episodes: indices of the episodes to replay.
        keep_scenes: whether to keep the scene of each step, for a video.
    """
    for batch in _batches(demos, episodes, env.num_envs):
        yield from _replay_batch(env, batch, keep_scenes)


def _batches(demos: Demonstrations, episodes: Sequence[int], size: int) -> Iterator[list[tuple[int, Demo]]]:
    """Batches of up to `size` episodes that store the same quantities of their start."""
    batch: list[tuple[int, Demo]] = []
    for i in episodes:
        demo = demos.episode(i)
        if batch and (len(batch) == size or _stored(demo) != _stored(batch[0][1])):
            yield batch
            batch = []
        batch.append((i, demo))
    if batch:
        yield batch


def _stored(demo: Demo) -> set[str]:
    """The names of the draws and states with which the episode can start."""
    return {*demo.draws, *_start_states(demo)}


def _start_states(demo: Demo) -> dict[str, Array]:
    """The simulator's state at the start by path, such as `actors/cube`, where the seed is unknown.

    Empty if the seed is known or the state is one array, as in files of this package.
    """
    if demo.seed is not None or demo.draws:
        return {}
    found: dict[str, Array] = {}

    def visit(tree: Tree, path: str) -> None:
        for name, value in tree.items():
            if isinstance(value, dict):
                visit(value, f"{path}{name}/")
            elif path:
                found[path + name] = value[0]

    visit(demo.env_states, "")
    return found


@torch.no_grad()
def _replay_batch(env: VecEnv, batch: list[tuple[int, Demo]], keep_scenes: bool) -> list[ReplayResult]:
    # Start the episodes; surplus envs repeat the last one.
    demos = [demo for _, demo in batch]
    results = [ReplayResult(i, len(demo), demo.seed, bool(demo.draws), demo.succeeded) for i, demo in batch]
    obs = _start(env, [*demos, *[demos[-1]] * (env.num_envs - len(demos))])

    # Compare the start.
    states = {name: value.cpu().numpy() for name, value in env.env_states().items()}
    for env_id, (demo, result) in enumerate(zip(demos, results, strict=True)):
        _compare(result.start, demo, obs, env_id, 0)
        for name, value in states.items():
            if name in demo.env_states and not isinstance(demo.env_states[name], dict):
                result.start.update(f"env state {name}", 0, demo.env_states[name][0], value[env_id])
        _compare(result.drift, demo, obs, env_id, 0)

    # Execute the actions and compare each step.
    running = set(range(len(demos)))
    step = 0
    while running:
        actions = torch.zeros(env.num_envs, len(env.action_unit))
        for env_id in running:
            actions[env_id] = torch.from_numpy(demos[env_id].actions[step])
        _, _, _, _, info = env.step(actions.to(env.device))
        step += 1
        final = {name: value.cpu().numpy() for name, value in info["final_obs"].items()}
        scenes = (info["final_scenes"] if "final_scenes" in info else env.scenes()) if keep_scenes else None
        for env_id in sorted(running):
            result = results[env_id]
            result.steps = step
            _compare(result.drift, demos[env_id], final, env_id, step)
            if scenes is not None:
                result.scenes.append(scenes[env_id])
            if info["_final_info"][env_id]:
                result.success = bool(info["final_info"]["success_once"][env_id])
            if info["_final_info"][env_id] or step == len(demos[env_id]):
                running.remove(env_id)
    return results


def _start(env: VecEnv, demos: Sequence[Demo]) -> dict[str, Array]:
    """Start the stored episodes; returns the first observations."""
    seeds = [DEFAULT_SEED if demo.seed is None else demo.seed for demo in demos]
    draws = {
        name: torch.from_numpy(np.stack([demo.draws[name] for demo in demos])) for name in demos[0].draws
    }
    options: dict[str, Any] | None = {"episode": draws} if draws else None
    if _start_states(demos[0]):
        starts = [_start_states(demo) for demo in demos]
        states = {name: torch.from_numpy(np.stack([start[name] for start in starts])) for name in starts[0]}
        options = {"env_states": states}
    obs, _ = env.reset(seed=seeds, options=options)
    env.episode_seeds.use_list([])  # an env stays idle once its episode has ended
    return {name: value.cpu().numpy() for name, value in obs.items()}


def _compare(difference: Difference, demo: Demo, obs: dict[str, Array], env_id: int, step: int) -> None:
    for name, stored in demo.obs.items():
        if name in obs:
            difference.update(name, step, stored[step], obs[name][env_id])


def write_replay_video(
    path: Path, env: VecEnv, replays: Sequence[ReplayResult], size: tuple[int, int] = (360, 480)
) -> int:
    """Write a video of replays with kept scenes, one after the other. Returns the number of frames."""
    return write_video(path, _frames(env, replays, size), env.control_hz)


def _frames(env: VecEnv, replays: Sequence[ReplayResult], size: tuple[int, int]) -> Iterator[Frame]:
    for result in replays:
        drawn = env.render_scenes(torch.stack(result.scenes), size)
        title = f"replay  ·  episode {result.episode}"
        if result.seed is not None:
            title += f"  ·  seed {result.seed}"
        for frame in drawn[:-1]:
            yield caption(frame, title)
        for _ in range(1 + round(0.7 * env.control_hz)):  # hold the last frame for 0.7 s
            yield caption(drawn[-1], f"{title}  ·  {'success' if result.success else 'failed'}")
