"""Motion planning in worker processes, so that a crash or a timeout fails only one episode.

The planner is compiled code, which may crash or hang. `pebble.ProcessPool` replaces a process that crashed
and kills one that exceeds the time limit.
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
"""Time after the time limit at which a planning process ends if its pool was killed [s]."""


@dataclass(frozen=True)
class PlanCfg:
    """Settings of the planning processes."""

    env_cfg: ManiSkillEnvCfg
    """Settings of the env in which the episodes are recorded."""
    max_episode_steps: int | None
    """Steps after which an episode is truncated. None: see `Planner`."""
    ignore_terminations: bool
    """Whether episodes continue after success or failure."""
    time_limit: float
    """Longest wall time of an episode [s]."""


class PlannerPool:
    """Processes that plan episodes.

    Args:
        cfg: their settings.
        num_workers: number of processes.

    Raises:
        ConfigError: episodes cannot be planned with these settings.
        MissingDependencyError: `pebble` is not installed.
        WorkerError: a process ended before its first episode.
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
            # the first result shows whether the task can be planned
            answer = self._pool.schedule(_describe).result()
        except (OSError, BrokenProcessPool) as error:
            self.close()
            raise WorkerError(f"a planning process ended before its first episode: {error}") from error
        except BaseException:
            self.close()
            raise
        if isinstance(answer, str):
            self.close()
            raise ConfigError(answer)
        self.description, self.max_episode_steps = answer
        """The env in which the episodes are recorded, and the steps after which it truncates an episode."""

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return list(self._pool._pool_manager.worker_manager.workers)

    def episodes(
        self, seeds: Sequence[int], stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Arrays | str]]:
        """Yield the index of each seed and its episode, or the reason why it failed. Call it once.

        The order is that of `seeds`. Once `stopped()` returns True, the episodes that are already complete
        are yielded and the others are cancelled.
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
        # stopped: yield the results that are ready and cancel the rest
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
            return f"planning took more than {self._time_limit:g} s"
        except ProcessExpired as error:
            return f"the planning process {describe_exit(error.exitcode)}"
        except BrokenProcessPool as error:
            raise WorkerError(f"the planning processes have ended: {error}") from error
        return result


# --- in a planning process ----------------------------------------------------------------------------------

_planner: Planner | str = "not built"
"""The planner of this process, or the reason why it could not be built."""


def _build(cfg: PlanCfg) -> None:
    """Build the planner. The time limit of episodes does not include this."""
    global _planner
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    try:
        require_planner()
        _planner = Planner(cfg.env_cfg, cfg.max_episode_steps, cfg.ignore_terminations)
    except ResidualRLError as error:
        _planner = str(error)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # solutions print a lot
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)


def _describe() -> tuple[EnvDescription, int] | str:
    """The planner's env and step limit, or the reason why there is no planner."""
    if isinstance(_planner, str):
        return _planner
    return _planner.description, _planner.max_episode_steps


def _plan(seed: int, time_limit: float) -> Arrays | str:
    """The episode of a seed, or the reason why it failed."""
    assert isinstance(_planner, Planner), _planner
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.ExitStack() as stack:
        # The pool enforces the limit. If the program was killed, the alarm ends this process instead.
        signal.setitimer(signal.ITIMER_REAL, time_limit + _GRACE_SECONDS)
        stack.callback(signal.setitimer, signal.ITIMER_REAL, 0.0)
        try:
            return _planner.episode(seed)
        except NoPlanError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 (solutions fail in many ways)
            return " ".join(f"{type(error).__name__}: {error}".split())
