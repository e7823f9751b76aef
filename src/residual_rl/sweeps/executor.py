"""Running a sweep's trials side by side, as subprocesses of this machine or with Ray."""

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
"""Time between two looks at the running trials [s]."""


def run_trials(
    trials: Sequence[Trial],
    cwd: str,
    cpus: int,
    gpus: float,
    address: str | None,
    stopped: Callable[[], bool],
    on_progress: OnProgress,
) -> None:
    """Run `trials` side by side until all have ended or `stopped()`; the running ones then save and end
    before this returns.

    Trials are subprocesses of this machine, as many at a time as it has cores for. Ray runs them instead, on
    this machine or on a cluster, where `address` is given or a trial needs a GPU.

    Args:
        trials: the trials to run or to continue.
        cwd: folder that relative paths among their flags start from.
        cpus: CPU cores of each trial.
        gpus: GPUs of each trial, possibly a fraction.
        address: address of a running Ray cluster, or `local` for one that is started on this machine for the
            sweep.
        stopped: whether to stop; called several times a second.
        on_progress: called with a trial and its progress.

    Raises `ConfigError` where a trial needs more cores or GPUs than there are, and `MissingDependencyError`
    where Ray is needed and not installed.
    """
    if _uses_ray(address, gpus):
        from residual_rl.sweeps.ray_executor import run_with_ray

        run_with_ray(trials, cwd, cpus, gpus, address or "local", stopped, on_progress)
    else:
        run_locally(trials, cwd, cpus, stopped, on_progress)


def require_executor(address: str | None, gpus: float) -> None:
    """Raise `MissingDependencyError` where `run_trials` with these settings would need Ray, and it is not
    installed."""
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
    """Run `trials` as subprocesses of this machine; see `run_trials`."""
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
        for process in running:  # all of them save at the same time
            process.terminate()
        for process in running:
            process.stop()


def check_resources(resources: dict[str, float], cpus: int, gpus: float) -> None:
    """Raise `ConfigError` where a trial needs more than `resources`, the cores and GPUs of this machine."""
    for name, flag, wanted in (("CPU", "--cpus-per-trial", cpus), ("GPU", "--gpus-per-trial", gpus)):
        available = resources.get(name, 0.0)
        if wanted > available:
            noun = "CPU cores" if name == "CPU" else "GPUs"
            raise ConfigError(
                f"{flag} {wanted:g} is more than this machine has ({available:g} {noun}); give at most"
                f" {available:g}"
            )
