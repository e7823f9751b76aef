"""Run the trials of a sweep with Ray.

Each trial is a Ray task, which starts the processes of the trial and yields its progress.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.sweeps.executor import OnProgress, check_resources
from residual_rl.sweeps.grid import Trial
from residual_rl.sweeps.trial import TrialProcess, TrialProgress, wait_until_free
from residual_rl.utils.text import one_line

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The processes of a trial save and end by themselves when their worker ends; Ray would kill them.
    "RAY_kill_child_processes_on_worker_exit": "false",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment variables that Ray reads when it is imported."""


def require_ray() -> None:
    """Raise `MissingDependencyError` if Ray is not installed."""
    os.environ.update(_SETTINGS)  # before its first import
    try:
        import ray  # noqa: F401
    except ImportError as error:
        fix = (
            "install it with `pip install 'residual-rl[ray]'`, or leave out --ray-address and"
            " --gpus-per-trial"
        )
        raise MissingDependencyError(f"Ray, which is needed for GPUs and clusters, ({error})", fix) from None


def run_with_ray(
    trials: Sequence[Trial],
    cwd: str,
    cpus: int,
    gpus: float,
    address: str,
    stopped: Callable[[], bool],
    on_progress: OnProgress,
) -> None:
    """Run `trials` as Ray tasks; see `executor.run_trials`.

    Raises `ConfigError` if there is no cluster at `address`.
    """
    require_ray()
    import ray

    _connect(address)
    try:
        # Start one task for each trial. Ray queues those that it has no free cores or GPUs for.
        if address == "local":
            check_resources(ray.cluster_resources(), cpus, gpus)
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_run_trial)
        running = {task.remote(trial.to_json(), cwd): trial for trial in trials}

        # Forward the progress that the tasks yield.
        while running and not stopped():
            ready, _ = ray.wait(list(running), num_returns=len(running), timeout=0.2)
            for results in ready:
                progress = _next_progress(results)
                if progress is not None:
                    on_progress(running[results], progress)
                if progress is None or progress.ended:
                    del running[results]

        # Stop the others: a cancelled task lets its trial save.
        for results in running:
            ray.cancel(results)
        for trial in running.values():
            while not wait_until_free(trial, 1.0):
                pass
    finally:
        ray.shutdown()


def _run_trial(trial_json: str, cwd: str) -> Iterator[dict[str, Any]]:
    """The Ray task of a trial: run it to its end and yield its progress. `ray.cancel` interrupts it."""
    process = TrialProcess(Trial.from_json(trial_json), cwd)
    try:
        progress = process.poll()
        while not progress.ended:
            yield vars(progress)
            progress = process.poll()
        yield vars(progress)
    finally:
        process.stop()


def _next_progress(results: Any) -> TrialProgress | None:
    """The next progress that a task yielded; None after its last."""
    import ray

    try:
        return TrialProgress(**ray.get(next(results)))
    except StopIteration:
        return None
    except ray.exceptions.RayError as error:
        return TrialProgress("interrupted", reason=f"its Ray worker ended: {one_line(error)}")


def _connect(address: str) -> None:
    """Connect to the Ray cluster at `address`, or start one on this machine."""
    import ray

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # the live table shows the state of the trials
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = "on this machine" if address == "local" else f"at {address}"
        fix = (
            ""
            if address == "local"
            else "; start one with `ray start --head` and give the address that it prints"
        )
        raise ConfigError(f"no Ray cluster {where}: {one_line(error)}{fix}") from error
    finally:
        # Ray replaces the handlers by its own, which end the process at once.
        for number, handler in handlers.items():
            signal.signal(number, handler)
