"""Run the trials of a sweep in parallel, as subprocesses on this machine or with Ray."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from residual_rl.errors import ConfigError
from residual_rl.sweeps.grid import Trial
from residual_rl.sweeps.trial import TrialProcess, TrialProgress
from residual_rl.utils.provenance import num_cores

OnProgress = Callable[[Trial, TrialProgress], None]
_POLL = 0.5
"""Interval at which the running trials are polled [s]."""


def run_trials(
    trials: Sequence[Trial],
    cwd: str,
    cpus: int,
    gpus: float,
    address: str | None,
    stopped: Callable[[], bool],
    on_progress: OnProgress,
) -> None:
    """Run `trials` in parallel until all have ended or `stopped()`.

    When stopped, the running trials save and end before this function returns. Trials are subprocesses on
    this machine, as many at a time as it has cores for. With `address`, or if a trial needs a GPU, Ray runs
    them on this machine or on a cluster.

    Args:
        trials: the trials to start or resume.
        cwd: folder that relative paths in their flags refer to.
        cpus: CPU cores of each trial.
        gpus: GPUs of each trial, possibly a fraction.
        address: address of a running Ray cluster, or `local` to start one on this machine for the sweep.
        stopped: whether to stop; called several times a second.
        on_progress: called with a trial and its progress.

    Raises `ConfigError` if a trial needs more cores or GPUs than there are, and `MissingDependencyError` if
    Ray is needed but not installed.
    """
    if _uses_ray(address, gpus):
        from residual_rl.sweeps.ray_executor import run_with_ray

        run_with_ray(trials, cwd, cpus, gpus, address or "local", stopped, on_progress)
    else:
        run_locally(trials, cwd, cpus, stopped, on_progress)


def require_executor(address: str | None, gpus: float) -> None:
    """Raise `MissingDependencyError` if `run_trials` needs Ray for these settings and it is not installed."""
    if _uses_ray(address, gpus):
        from residual_rl.sweeps.ray_executor import require_ray

        require_ray()


def _uses_ray(address: str | None, gpus: float) -> bool:
    return address is not None or gpus > 0.0


def run_locally(
    trials: Sequence[Trial],
    cwd: str,
    cpus: int,
    stopped: Callable[[], bool],
    on_progress: OnProgress,
) -> None:
    """Run `trials` as subprocesses on this machine; see `run_trials`."""
    check_resources({"CPU": float(num_cores())}, cpus, 0.0)
    num_slots = num_cores() // cpus
    waiting = deque(trials)
    running: list[TrialProcess] = []
    try:
        while (waiting or running) and not stopped():
            # Fill the free slots.
            while waiting and len(running) < num_slots:
                running.append(TrialProcess(waiting.popleft(), cwd))

            # Report the progress of the running trials, and remove those that have ended.
            started = time.monotonic()
            for process in tuple(running):
                progress = process.poll(0.0)
                on_progress(process.trial, progress)
                if progress.ended:
                    running.remove(process)
            time.sleep(max(0.0, _POLL - (time.monotonic() - started)))
    finally:
        for process in running:  # they save in parallel
            process.terminate()
        for process in running:
            process.stop()


def check_resources(resources: dict[str, float], cpus: int, gpus: float) -> None:
    """Raise `ConfigError` if a trial needs more than `resources`, the cores and GPUs of this machine."""
    for name, flag, wanted in (("CPU", "--cpus-per-trial", cpus), ("GPU", "--gpus-per-trial", gpus)):
        available = resources.get(name, 0.0)
        if wanted > available:
            noun = "CPU cores" if name == "CPU" else "GPUs"
            raise ConfigError(
                f"{flag} {wanted:g} is more than this machine has ({available:g} {noun}); give at most"
                f" {available:g}"
            )
