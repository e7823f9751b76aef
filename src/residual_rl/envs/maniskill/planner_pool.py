"""Motion planning in worker processes: a plan that crashes or takes too long costs one episode.

The planner is compiled code, which may crash or never return. `pebble.ProcessPool` replaces a process that
did, and kills one that exceeds the time limit.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch

from residual_rl.envs.maniskill.motion_planner import Arrays, NoPlanError, Planner, require_planner
from residual_rl.envs.maniskill.spec import EnvDescription, ManiSkillEnvCfg
from residual_rl.envs.workers.pool import WorkerError
from residual_rl.envs.workers.process import describe_exit
from residual_rl.errors import ConfigError, MissingDependencyError, ResidualRLError

_POLL_SECONDS = 0.2
"""Time between two calls of `stopped` [s]."""
_GRACE_SECONDS = 10.0
"""A planning process whose pool has been killed ends this long after the time limit [s]."""


@dataclass(frozen=True)
class PlanCfg:
    """What is planned, and how long that may take."""

    env_cfg: ManiSkillEnvCfg
    """The env that the episodes are stored from."""
    max_episode_steps: int | None
    """None: see `Planner`."""
    ignore_terminations: bool
    time_limit: float
    """Longest time that an episode may take [s]."""


class PlannerPool:
    """Processes that plan episodes.

    Args:
        cfg: what they plan.
        num_workers: how many.

    Raises `ConfigError` for what cannot be planned.
    """

    def __init__(self, cfg: PlanCfg, num_workers: int):
        try:
            from pebble import ProcessPool
        except ImportError as error:
            raise MissingDependencyError(
                "pebble", "install it with `pip install residual-rl[maniskill]`"
            ) from error
        # fork workers from a server that has imported ManiSkill once
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "mani_skill.envs"])
        self._time_limit = cfg.time_limit
        self._pool = ProcessPool(num_workers, initializer=_build, initargs=(cfg,), context=context)
        try:
            # the first answer shows whether the task can be planned
            answer = self._pool.schedule(_describe).result()
        except (OSError, BrokenProcessPool) as error:
            self.close()
            raise WorkerError(f"a planning process died before its first episode: {error}") from error
        except BaseException:
            self.close()
            raise
        if isinstance(answer, str):
            self.close()
            raise ConfigError(answer)
        self.description, self.max_episode_steps = answer
        """The env that the episodes are stored from, and the steps after which an episode is truncated
        there."""

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return list(self._pool._pool_manager.worker_manager.workers)

    def episodes(
        self, seeds: Sequence[int], stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Arrays | str]]:
        """The episode of each of `seeds`, or why it failed, with its index, in order; to be called once.

        When `stopped()`, the episodes that are complete by then come first.
        """
        futures = [
            self._pool.schedule(_plan, (seed, self._time_limit), timeout=self._time_limit) for seed in seeds
        ]
        # yield results in the order of the seeds, as soon as they are complete
        next_index = 0
        while next_index < len(futures) and not stopped():
            wait([futures[next_index]], _POLL_SECONDS)
            while next_index < len(futures) and futures[next_index].done():
                yield next_index, self._result(futures[next_index])
                next_index += 1
        # stopped: results that are ready, and no further episodes
        for i, future in enumerate(futures[next_index:], next_index):
            if future.done():
                yield i, self._result(future)
            future.cancel()

    def close(self) -> None:
        """End the processes."""
        self._pool.stop()
        self._pool.join()

    def _result(self, future: Any) -> Arrays | str:
        from pebble import ProcessExpired

        try:
            result: Arrays | str = future.result()
        except TimeoutError:
            return f"it took more than {self._time_limit:g} s"
        except ProcessExpired as error:
            return f"the planning process {describe_exit(error.exitcode)}"
        except BrokenProcessPool as error:
            raise WorkerError(f"the planning processes have ended: {error}") from error
        return result


# --- in a planning process ----------------------------------------------------------------------------------

_planner: Planner | str = "not built"
"""The planner of this process, or why there is none."""


def _build(cfg: PlanCfg) -> None:
    """Build the planner. This is not part of an episode's time."""
    global _planner
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    try:
        require_planner()
        _planner = Planner(cfg.env_cfg, cfg.max_episode_steps, cfg.ignore_terminations)
    except ResidualRLError as error:
        _planner = str(error)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # solutions print much
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)


def _describe() -> tuple[EnvDescription, int] | str:
    """The planner's env and limit, or why there is no planner."""
    if isinstance(_planner, str):
        return _planner
    return _planner.description, _planner.max_episode_steps


def _plan(seed: int, time_limit: float) -> Arrays | str:
    """The episode of a seed, or why it failed."""
    assert isinstance(_planner, Planner), _planner
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.ExitStack() as stack:
        # The pool enforces the limit. The alarm is for a process that the pool cannot end, as the program was
        # killed.
        signal.setitimer(signal.ITIMER_REAL, time_limit + _GRACE_SECONDS)
        stack.callback(signal.setitimer, signal.ITIMER_REAL, 0.0)
        try:
            return _planner.episode(seed)
        except NoPlanError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 (solutions fail in many ways)
            return " ".join(f"{type(error).__name__}: {error}".split())
