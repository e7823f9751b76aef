"""Speed of a task's envs compared with bare MuJoCo on the same states.

A stretch of env steps is recorded once: for each env and episode the start state, the randomised
model, and the servo commands of every physics step. `mujoco.rollout`, a loop over `mj_step` in C,
then runs the same physics alone, with the same number of threads; its final states are compared bit for
bit with those of the env. The two alternate.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.envs.mujoco.physics import MujocoPhysics
from residual_rl.errors import ConfigError, ResidualRLError
from residual_rl.utils.mujoco_library import mujoco

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
    """[nv]: warm start of the solver."""
    commands: list[NDArray[np.float64]] = field(default_factory=list)
    """[steps, J] of each policy step."""
    end: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """[nq]: the configuration after the last step."""


@dataclass
class Stretch:
    """A sequence of env steps, and the same physics without the env."""

    seed: int
    actions: list[Tensor]
    """[B, A] of each step."""
    segments: list[Segment]
    num_steps: int
    """Env steps over all envs."""


@dataclass
class Speeds:
    """Env steps per second, one value per turn."""

    env_cpu: list[float] = field(default_factory=list)
    """Env steps per CPU-second of the process."""
    raw_cpu: list[float] = field(default_factory=list)
    """The same for bare MuJoCo."""
    env_wall: list[float] = field(default_factory=list)
    raw_wall: list[float] = field(default_factory=list)
    physics_share: list[float] = field(default_factory=list)
    """Share of physics in the CPU time of the env."""
    resets: int = 0
    """Episodes that start during the stretch."""

    @property
    def ratios(self) -> list[float]:
        """Env ÷ bare MuJoCo per CPU-second, for each turn."""
        return [env / raw for env, raw in zip(self.env_cpu, self.raw_cpu, strict=True)]


def compare_stepping(env: ResidualEnv, num_steps: int, repeats: int, seed: int = 0) -> Speeds:
    """Alternate between `env` and bare MuJoCo, `num_steps` policy steps each, on the same states.

    The states are those of the base policy with random residuals. Raises `NotMujocoError` if MuJoCo does not
    simulate the envs, and `ResidualRLError` if bare MuJoCo ends in other states than the env, because the
    speeds are then not comparable.
    """
    task_env, physics = _mujoco_env(env)
    stretch = _record(env, num_steps, seed)
    raw = _RawPhysics(physics.batch.nthread, stretch.segments)
    speeds = Speeds(resets=len(stretch.segments) - env.num_envs)

    # Alternate between the two; the first turn warms up.
    for turn in range(repeats + 1):
        if turn % 2:  # the order alternates too
            raw_cpu, raw_wall = _timed(raw.run)
        env_cpu, env_wall, share = _timed_env(task_env, physics, stretch)
        if not turn % 2:
            raw_cpu, raw_wall = _timed(raw.run)
        if turn == 0:  # warm-up
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
        raise NotMujocoError("the comparison with bare MuJoCo needs envs that MuJoCo simulates")
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


def _segment(physics: MujocoPhysics, env_id: int) -> Segment:
    data = physics.batch.get_data(env_id)
    state = np.empty(mujoco.mj_stateSize(physics.model, _FULL))
    mujoco.mj_getState(physics.model, data, state, _FULL)
    return Segment(physics.batch.get_model(env_id), state, data.qacc_warmstart.copy())


class _RawPhysics:
    """Runs segments with `mj_step` alone, on `num_threads` threads that share a queue."""

    def __init__(self, num_threads: int, segments: list[Segment]):
        from mujoco.rollout import Rollout

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
        """Run all segments from their start states.

        Raises `ResidualRLError` if the final state of one differs from that of the env.
        """
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
                    "bare MuJoCo ended in another state than the env, so their speeds cannot be compared"
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
    """CPU and wall time of the stretch in the env [s], and the share of physics."""
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
