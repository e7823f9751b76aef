"""Speed of a task's envs compared with bare MuJoCo on the same states.

A stretch of env steps is recorded once: for each world and episode the start state, the model with what was
randomised in it, and the servo commands of every physics step. `mujoco.rollout`, a loop over `mj_step` in C,
then runs the same physics alone, with as many threads; the states it ends in are compared bit for bit with
those of the env. The two take turns.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import mujoco
import numpy as np
import torch
from mujoco.rollout import Rollout
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.envs.mujoco.physics import MujocoPhysics
from residual_rl.errors import ConfigError, ResidualRLError

if TYPE_CHECKING:
    from residual_rl.envs.task_env import TaskEnv
    from residual_rl.residual_env import ResidualEnv


class NotMujocoError(ConfigError):
    """The envs are not simulated by MuJoCo."""


_FULL = mujoco.mjtState.mjSTATE_FULLPHYSICS


@dataclass
class Segment:
    """Physics of one env between two resets."""

    model: mujoco.MjModel
    state: NDArray[np.float64]
    """[S]: the full physics state at the start."""
    warmstart: NDArray[np.float64]
    """[nv]: where the solver began."""
    commands: list[NDArray[np.float64]] = field(default_factory=list)
    """[steps, J] of each policy step."""
    end: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """[nq]: the configuration after the last step."""


@dataclass
class Stretch:
    """Some env steps, and the same as bare physics."""

    seed: int
    actions: list[Tensor]
    """[B, A] of each step."""
    segments: list[Segment]
    num_steps: int
    """Env steps over all envs."""


@dataclass
class Speeds:
    """Env steps per second, a value for each turn."""

    env_cpu: list[float] = field(default_factory=list)
    """Of the env, per second of the process's CPU time."""
    raw_cpu: list[float] = field(default_factory=list)
    """Of bare MuJoCo, likewise."""
    env_wall: list[float] = field(default_factory=list)
    raw_wall: list[float] = field(default_factory=list)
    physics_share: list[float] = field(default_factory=list)
    """Share of the env's CPU time that its physics took."""
    resets: int = 0
    """Episodes that began during the stretch."""

    @property
    def ratios(self) -> list[float]:
        """Env against bare MuJoCo per CPU-second, turn by turn."""
        return [env / raw for env, raw in zip(self.env_cpu, self.raw_cpu, strict=True)]


def compare_stepping(env: ResidualEnv, num_steps: int, repeats: int, seed: int = 0) -> Speeds:
    """Step `env` and bare MuJoCo in turns, `num_steps` policy steps each, on the states that the base policy
    with random residuals visits.

    Raises `NotMujocoError` where the worlds are not MuJoCo's, and `ResidualRLError` where bare MuJoCo ends in
    other states than the env: then the two did not do the same work, and no figure means anything.
    """
    task_env, physics = _mujoco_env(env)
    stretch = _record(env, num_steps, seed)
    raw = _RawPhysics(physics.batch.nthread, stretch.segments)
    speeds = Speeds(resets=len(stretch.segments) - env.num_envs)

    # Alternate between the two; the first turn warms up.
    for turn in range(repeats + 1):
        if turn % 2:  # who comes first takes turns too
            raw_cpu, raw_wall = _timed(raw.run)
        env_cpu, env_wall, share = _timed_env(task_env, physics, stretch)
        if not turn % 2:
            raw_cpu, raw_wall = _timed(raw.run)
        if turn == 0:  # to warm up
            continue
        speeds.raw_cpu.append(stretch.num_steps / raw_cpu)
        speeds.raw_wall.append(stretch.num_steps / raw_wall)
        speeds.env_cpu.append(stretch.num_steps / env_cpu)
        speeds.env_wall.append(stretch.num_steps / env_wall)
        speeds.physics_share.append(share)
    raw.close()
    return speeds


def _mujoco_env(env: ResidualEnv) -> tuple[TaskEnv, MujocoPhysics]:
    from residual_rl.envs.task_env import TaskEnv

    if not isinstance(env.vec_env, TaskEnv) or not isinstance(env.vec_env.physics, MujocoPhysics):
        raise NotMujocoError("bare MuJoCo can be compared only with worlds that MuJoCo steps")
    return env.vec_env, env.vec_env.physics


def _record(env: ResidualEnv, num_steps: int, seed: int) -> Stretch:
    _, physics = _mujoco_env(env)
    segments: list[Segment] = []
    current: dict[int, Segment] = {}
    step, reset = physics.step, physics.reset

    def recorded_reset(env_ids: Tensor, episode: dict[str, Tensor]) -> None:
        reset(env_ids, episode)
        for env_id in env_ids.tolist():
            current[env_id] = _segment(physics, env_id)
            segments.append(current[env_id])

    def recorded_step(joint_target: Tensor, env_ids: Tensor | None = None) -> None:
        commands = physics.commands(joint_target)
        step(joint_target, env_ids)
        ends = physics.scenes().numpy()
        for env_id, segment in current.items():
            segment.commands.append(commands[env_id])
            segment.end = ends[env_id]

    # Step the base policy with random residuals while the physics is recorded.
    physics.step, physics.reset = recorded_step, recorded_reset  # type: ignore[method-assign]
    try:
        generator = torch.Generator().manual_seed(seed)
        env.reset(seed)
        actions = []
        for _ in range(num_steps):
            transition, _ = env.step(
                torch.rand(env.num_envs, env.action_dim, generator=generator) * 2.0 - 1.0
            )
            actions.append(transition.action)
    finally:
        physics.step, physics.reset = step, reset  # type: ignore[method-assign]
    return Stretch(seed, actions, [s for s in segments if s.commands], num_steps * env.num_envs)


def _segment(physics: MujocoPhysics, world: int) -> Segment:
    data = physics.batch.get_data(world)
    state = np.empty(mujoco.mj_stateSize(physics.model, _FULL))
    mujoco.mj_getState(physics.model, data, state, _FULL)
    return Segment(physics.batch.get_model(world), state, data.qacc_warmstart.copy())


class _RawPhysics:
    """Runs segments with `mj_step` alone, on `num_threads` threads that take one after the other."""

    def __init__(self, num_threads: int, segments: list[Segment]):
        self._jobs = sorted(segments, key=lambda s: len(s.commands), reverse=True)
        self._controls = [np.concatenate(s.commands)[None] for s in self._jobs]
        self._pool = ThreadPoolExecutor(num_threads)
        self._num_threads = num_threads
        longest, model = self._controls[0].shape[1], segments[0].model
        sizes = len(segments[0].state), model.nsensordata
        self._workers = [
            (Rollout(nthread=0), mujoco.MjData(model), *(np.empty((1, longest, size)) for size in sizes))
            for _ in range(num_threads)
        ]

    def run(self) -> None:
        """All segments, from their start states. Raises `ResidualRLError` where one ends elsewhere than the
        env did."""
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for i in range(len(self._jobs)):
            todo.put(i)
        list(self._pool.map(lambda worker: self._work(worker, todo), range(self._num_threads)))

    def _work(self, worker: int, todo: queue.SimpleQueue[int]) -> None:
        rollout, data, states, sensors = self._workers[worker]
        while True:
            try:
                i = todo.get_nowait()
            except queue.Empty:
                return
            # Run the segment from its recorded start.
            job, control = self._jobs[i], self._controls[i]
            n = control.shape[1]
            rollout.rollout(
                job.model,
                data,
                job.state[None],
                control,
                initial_warmstart=job.warmstart[None],
                state=states[:, :n],
                sensordata=sensors[:, :n],
            )

            # Compare the final configuration.
            if not np.array_equal(states[0, n - 1, 1 : 1 + job.model.nq], job.end):  # time comes before qpos
                raise ResidualRLError(
                    "bare MuJoCo ended in another state than the env: the two did not do the same work"
                )

    def close(self) -> None:
        self._pool.shutdown()
        for rollout, *_ in self._workers:
            rollout.close()


def _timed(run: Callable[[], None]) -> tuple[float, float]:
    """CPU time of the whole process and wall time [s]."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def _timed_env(env: TaskEnv, physics: MujocoPhysics, stretch: Stretch) -> tuple[float, float, float]:
    """CPU and wall time of the stretch in the env [s], and the share of its physics."""
    env.reset(seed=stretch.seed)
    spent, step = 0.0, physics.step

    def timed_step(joint_target: Tensor, env_ids: Tensor | None = None) -> None:
        nonlocal spent
        start = time.process_time()
        step(joint_target, env_ids)
        spent += time.process_time() - start

    def run() -> None:
        for action in stretch.actions:
            env.step(action)

    physics.step = timed_step  # type: ignore[method-assign]
    try:
        cpu, wall = _timed(run)
    finally:
        physics.step = step  # type: ignore[method-assign]
    return cpu, wall, spent / cpu
