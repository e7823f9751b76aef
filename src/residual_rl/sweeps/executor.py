"""Running a sweep's trials with Ray Tune: each is an actor that looks after the processes of its trial."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.sweeps.grid import Trial
from residual_rl.sweeps.trial import Progress, TrialProcess, wait_until_free

INSTALL = "install it with `pip install 'residual-rl[ray]'`"
WAIT_FOR_EARLIER = 120.0
"""How long a trial waits for a process that an earlier driver left and that is still saving [s]."""
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # a trial's process ends with its actor by itself, and saves before; Ray would kill it
    "RAY_kill_child_processes_on_worker_exit": "false",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Ray reads them from the environment: no reports about its use to others, no output of its own, no handling of signals."""


def require_ray() -> None:
    """Raise `MissingDependencyError` where Ray Tune is not installed."""
    os.environ.update(_SETTINGS)  # before its first import
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"Ray Tune, which sweeps run with, ({error})", INSTALL) from None


def run_trials(
    trials: Sequence[Trial],
    cwd: str,
    work: Path,
    cpus: int,
    gpus: float,
    address: str | None,
    stopped: Callable[[], bool],
    on_progress: Callable[[Trial, Progress], None],
) -> None:
    """Run `trials` side by side, as many as there are cores for, until all have ended or `stopped()`; then those that run have saved.

    Args:
        trials: which have not finished.
        cwd: folder that relative paths among their flags are from.
        work: a folder for Ray's own files, removed at the end; on a cluster all machines see it.
        cpus: CPU cores of each trial.
        gpus: GPUs of each trial.
        address: of a running Ray cluster; None starts one on this machine alone, for this sweep.
        stopped: asked a few times a second.
        on_progress: called with a trial and where it stands.
    """
    require_ray()
    import ray
    from ray import tune

    _connect(address)
    _SWEEP.stopped, _SWEEP.on_progress = stopped, on_progress
    try:
        if address is None:
            _check_fits(ray.cluster_resources(), cpus, gpus)
        param_space = {"cwd": cwd, "trial": tune.grid_search([trial.to_json() for trial in trials])}
        tune.Tuner(
            tune.with_resources(_trainable(), {"cpu": cpus, **({"gpu": gpus} if gpus else {})}),
            param_space=param_space,
            tune_config=tune.TuneConfig(trial_dirname_creator=_name_of, trial_name_creator=_name_of),
            run_config=tune.RunConfig(
                name="session",
                storage_path=str(work.resolve()),
                stop=_stopper(),
                callbacks=[_callback()],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials keep their own
                failure_config=tune.FailureConfig(max_failures=0, fail_fast=False),
                verbose=0,
            ),
        ).fit()
        for trial in trials:  # Ray waits for a few seconds only
            while not wait_until_free(trial, 1.0):
                pass
    finally:
        vars(_SWEEP).clear()
        ray.shutdown()
        shutil.rmtree(work, ignore_errors=True)


def _connect(address: str | None) -> None:
    import ray

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # what it has to say is told of the trials
    options: dict[str, Any] = {} if address is not None else {"include_dashboard": False}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = f"at {address}" if address else "on this machine"
        mend = "; start it with `ray start --head` and give the address it tells" if address else ""
        raise ConfigError(f"no Ray cluster {where}: {' '.join(str(error).split())[:300]}{mend}") from error
    finally:
        for number, handler in handlers.items():  # Ray puts its own in their place, which end the process at once
            signal.signal(number, handler)


def _check_fits(resources: dict[str, float], cpus: int, gpus: float) -> None:
    for name, flag, wanted in (("CPU", "--cpus-per-trial", cpus), ("GPU", "--gpus-per-trial", gpus)):
        if wanted > resources.get(name, 0.0):
            raise ConfigError(
                f"{flag} is {wanted:g}, and this machine has {resources.get(name, 0.0):g} of {name}: no trial would ever start"
            )


def _name_of(trial: Any) -> str:
    return Trial.from_json(trial.config["trial"]).name


# Ray is an extra: what derives from its classes is made where they are there.


def _trainable() -> Any:
    from ray import tune

    class SweepTrial(tune.Trainable):
        """An actor that looks after one trial."""

        def setup(self, config: dict[str, Any]) -> None:
            trial = Trial.from_json(config["trial"])
            wait_until_free(trial, WAIT_FOR_EARLIER)
            self._trial_process = TrialProcess(trial, config["cwd"])

        def step(self) -> dict[str, Any]:
            progress = self._trial_process.poll()
            ended = progress.state in ("finished", "failed", "interrupted")
            return {"done": ended, "progress": vars(progress)}

        def cleanup(self) -> None:
            self._trial_process.stop()

    return SweepTrial


def _stopper() -> Any:
    from ray import tune

    class Stop(tune.Stopper):
        """Ends the sweep of this process when it is asked to."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
            return False

        def stop_all(self) -> bool:
            return _stop_asked()

    return Stop()


def _callback() -> Any:
    from ray import tune

    class Tell(tune.Callback):
        """Passes on what trials report."""

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
            _tell(trial, Progress("running"))

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:  # noqa: ARG002
            _tell(trial, Progress(**result["progress"]))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
            _tell(trial, Progress("interrupted", reason="its Ray worker ended"))

    return Tell()


@dataclass
class _Sweep:
    """The sweep of this process. Tune copies and stores its stopper and callback, so what they speak with is not in them."""

    stopped: Callable[[], bool] = lambda: False
    on_progress: Callable[[Trial, Progress], None] = lambda trial, progress: None  # noqa: ARG005


_SWEEP = _Sweep()


def _stop_asked() -> bool:
    return _SWEEP.stopped()


def _tell(trial: Any, progress: Progress) -> None:
    _SWEEP.on_progress(Trial.from_json(trial.config["trial"]), progress)
