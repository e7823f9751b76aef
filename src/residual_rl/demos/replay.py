"""Replaying demonstrations in simulation: is an episode's success the same again, and how far is what is observed from what was stored?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from residual_rl.config import from_plain
from residual_rl.demos.episode import Array, Demo
from residual_rl.demos.reader import Demonstrations
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.registry import TASKS, load
from residual_rl.visualization.video import Frame, caption, write_video

DEFAULT_SEED = 0
"""Seed that says what a stored episode leaves open."""


@dataclass
class Difference:
    """The largest absolute difference between what was stored and what came now."""

    value: float = 0.0
    name: str = ""
    """What differs most; empty where nothing does."""
    step: int = 0
    """At which observation."""

    def update(self, name: str, step: int, stored: Array, now: Array) -> None:
        """Take in the array `name` after `step` steps. NaN on one side, or another shape, is infinitely far."""
        value = np.inf
        if stored.shape == now.shape:
            value = float(
                np.nan_to_num(np.abs(stored.astype(np.float64) - now.astype(np.float64)), nan=np.inf).max(
                    initial=0.0
                )
            )
        if value > self.value:
            self.value, self.name, self.step = value, name, step

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.name}, step {self.step})" if self.name else "0"


@dataclass
class Replayed:
    """How the replay of an episode went."""

    episode: int
    demo_steps: int
    """Steps that were stored."""
    seed: int | None
    """Seed that was stored."""
    has_draws: bool
    """Whether what was drawn for the episode was stored, and so is what it was started with."""
    stored_success: bool | None
    """None where it was not stored."""
    success: bool = False
    steps: int = 0
    """Steps that were executed: fewer than were stored where the env's episode ended before."""
    start: Difference = field(default_factory=Difference)
    """Of the first observation, and of the simulator's state."""
    drift: Difference = field(default_factory=Difference)
    """Of all observations."""
    scenes: list[Tensor] = field(default_factory=list)
    """What drawing each step needs, where it was asked for."""

    @property
    def reproduced(self) -> bool | None:
        """Whether success or failure is what was stored; None where that is not known."""
        return None if self.stored_success is None else self.success == self.stored_success


def make_env(demos: Demonstrations, num_envs: int, num_threads: int = 0) -> VecEnv:
    """Envs of the task that `demos` are of, with the settings that are stored. Raises `ConfigError` and `CheckpointError`."""
    try:
        spec = TASKS.get(demos.task_id)
    except UnknownNameError as error:
        raise ConfigError(f"{demos.path}: {error}; install the package that registers it") from None
    settings = demos.task_settings
    try:
        cfg = from_plain(load(spec.config), settings)
    except (UnknownNameError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{demos.path} holds settings that task {spec.id!r} of this release does not take: {error}"
        ) from error
    env: VecEnv = load(spec.make)(cfg, num_envs, num_threads, "cpu")
    if len(env.action_unit) != demos.action_dim:
        env.close()
        raise CheckpointError(
            f"{demos.path} holds actions of {demos.action_dim} numbers, and task {spec.id!r} takes {len(env.action_unit)}: "
            "it was recorded on another robot or with another version of the task"
        )
    return env


def replay(
    env: VecEnv, demos: Demonstrations, episodes: Sequence[int], keep_scenes: bool = False
) -> Iterator[Replayed]:
    """Execute the stored actions of `episodes` in `env`, as many at once as it has envs.

    An episode starts with its seed and what was drawn for it, as far as they are stored, and otherwise as seed 0 draws it; it ends where
    the env ends it, or the actions end.
    """
    for batch in _batches(demos, episodes, env.num_envs):
        yield from _replay_batch(env, batch, keep_scenes)


def _batches(demos: Demonstrations, episodes: Sequence[int], size: int) -> Iterator[list[tuple[int, Demo]]]:
    """Up to `size` episodes with draws of the same names."""
    batch: list[tuple[int, Demo]] = []
    for i in episodes:
        demo = demos.episode(i)
        if batch and (len(batch) == size or set(demo.draws) != set(batch[0][1].draws)):
            yield batch
            batch = []
        batch.append((i, demo))
    if batch:
        yield batch


@torch.no_grad()
def _replay_batch(env: VecEnv, batch: list[tuple[int, Demo]], keep_scenes: bool) -> list[Replayed]:
    demos = [demo for _, demo in batch]
    results = [Replayed(i, len(demo), demo.seed, bool(demo.draws), demo.succeeded) for i, demo in batch]
    obs = _start(
        env, [*demos, *[demos[-1]] * (env.num_envs - len(demos))]
    )  # envs that are too many do what the last one does
    states = {name: value.cpu().numpy() for name, value in env.env_states().items()}
    for env_id, (demo, result) in enumerate(zip(demos, results, strict=True)):
        _compare(result.start, demo, obs, env_id, 0)
        for name, value in states.items():
            if name in demo.env_states and not isinstance(demo.env_states[name], dict):
                result.start.update(f"env state {name}", 0, demo.env_states[name][0], value[env_id])
        _compare(result.drift, demo, obs, env_id, 0)
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
    """Start the stored episodes; gives the first observations."""
    seeds = [DEFAULT_SEED if demo.seed is None else demo.seed for demo in demos]
    draws = {
        name: torch.from_numpy(np.stack([demo.draws[name] for demo in demos])) for name in demos[0].draws
    }
    options: dict[str, Any] | None = {"episode": draws} if draws else None
    obs, _ = env.reset(seed=seeds, options=options)
    env.episode_seeds.use_list([])  # a world whose episode ended stands still
    return {name: value.cpu().numpy() for name, value in obs.items()}


def _compare(difference: Difference, demo: Demo, obs: dict[str, Array], env_id: int, step: int) -> None:
    for name, stored in demo.obs.items():
        if name in obs:
            difference.update(name, step, stored[step], obs[name][env_id])


def write_replay_video(
    path: Path, env: VecEnv, replays: Sequence[Replayed], size: tuple[int, int] = (360, 480)
) -> int:
    """Write a video of the episodes, one after the other, each step's scene kept. Returns the number of frames."""
    return write_video(path, _frames(env, replays, size), env.control_hz)


def _frames(env: VecEnv, replays: Sequence[Replayed], size: tuple[int, int]) -> Iterator[Frame]:
    for result in replays:
        drawn = env.render_scenes(torch.stack(result.scenes), size)
        title = f"replay  ·  episode {result.episode}" + (
            "" if result.seed is None else f"  ·  seed {result.seed}"
        )
        for frame in drawn[:-1]:
            yield caption(frame, title)
        for _ in range(1 + round(0.7 * env.control_hz)):  # a moment to see the end
            yield caption(drawn[-1], f"{title}  ·  {'success' if result.success else 'failed'}")
