"""The training loop: collect, update, log, evaluate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from residual_rl.config import TrainCfg
from residual_rl.demos.transitions import load_demonstrations
from residual_rl.errors import BasePolicyError, CheckpointError, NonFiniteError
from residual_rl.evaluation.deployment import Deployment
from residual_rl.evaluation.selection import ModelSelection, make_eval_env, unconfirmed
from residual_rl.exported_policy import export_policy
from residual_rl.factory import make_learner, make_training_env, with_obs_keys
from residual_rl.runs import checkpoint
from residual_rl.runs.disk_space import check_room, state_bytes
from residual_rl.runs.logger import Logger, MetricAverager, read_metrics
from residual_rl.runs.progress import Progress, session_begin
from residual_rl.runs.progress_bar import ProgressBar
from residual_rl.runs.run_folder import RunFolder
from residual_rl.runs.wandb_tracker import check_wandb
from residual_rl.types import ChoosesStartStates, HasReplay, Metrics, State, Transition
from residual_rl.utils.files import parse_json, write_json
from residual_rl.utils.seeding import training_seed_start
from residual_rl.utils.signals import StopRequest, stop_signals
from residual_rl.utils.text import shell_command

_log = logging.getLogger(__name__)


class Runner:
    """Trains a residual on top of a base policy, in a run folder.

    Args:
        cfg: the settings.
        folder: the run folder. It must be started or resumed before `learn`; the constructor writes nothing.
        resume: continue from the newest intact checkpoint.

    Raises:
        ConfigError: incompatible settings.
        CheckpointError: no usable checkpoint to resume from.
    """

    def __init__(self, cfg: TrainCfg, folder: RunFolder, resume: bool = False):
        self._started = session_begin()
        torch.set_num_threads(cfg.run.torch_threads)
        self.folder = folder
        if cfg.run.wandb_project is not None:
            check_wandb(cfg.run.wandb_project)
        self.env = make_training_env(cfg)
        self.cfg = cfg = with_obs_keys(cfg, self.env)
        """The settings, with the observations that the learner reads by default in this env."""
        self.eval_env = make_eval_env(cfg)
        self.selection = ModelSelection(cfg, folder, self.eval_env)
        self._env_in_use = self.env
        """The env being stepped, for error reports."""
        self.learner = make_learner(cfg, self.env)
        self._steps_per_iteration = self.learner.num_steps * self.env.num_envs * self.env.steps_per_action
        """Env steps of an iteration; with whole chunks at most, since envs may wait for others."""
        num_iterations = max(cfg.run.total_timesteps // self._steps_per_iteration, 1)
        self.total_steps = num_iterations * self._steps_per_iteration
        """Env steps of the whole training: `total_timesteps` rounded down to whole iterations, at least
        one. Training ends where another iteration might exceed it."""
        self.progress = Progress()
        self.timer = self.env.timer
        self.metrics = MetricAverager()
        self.wall_time = 0.0
        """Duration of all sessions [s], including imports, construction and evaluations. The first Runner of
        a process counts from the start of the process, any other from its own construction."""
        self._deployment: Deployment | None = None
        """The outcome of the comparison with the base policy, once it is known."""
        self.checkpoints = checkpoint.CheckpointFolder(folder.checkpoints, cfg.run.keep_checkpoints)
        if not (resume and self._resume()):
            load_demonstrations(cfg, self.learner, self.env)
            self._set_schedules()  # so that a curriculum already applies to the first episode
            self.env.reset(seed=training_seed_start(cfg.run.seed))
        self._check_disk()

    def learn(self) -> dict[str, Any]:
        """Train to the end, or until a stop signal arrives (in the main thread only). Returns the summary.

        In the summary, `signal` is the signal that stopped the training, or None. `wall_time` and
        `time_to_95` [s] count from the start of the training command, including imports and construction, and
        add up over the sessions of a resumed run; `steps_per_second` refers to the same time.
        `evaluation_time` [s] is that of this session. `finished` is False also for a training whose best
        model could not be compared with the base policy yet. `deployment` has the fields of `Deployment`.
        """
        cfg = self.cfg.run
        progress = self.progress
        self.timer.setup = time.perf_counter() - self._started
        session = self._started - self.wall_time
        self.folder.stamp_env(self.env.vec_env.software)
        # without a first evaluation, what an earlier session logged is dropped: training starts anew
        resume_step = -1 if progress.best is None else progress.logged
        with (
            stop_signals() as stop,
            Logger(self.folder.path, cfg.wandb_project, self.cfg.to_dict(), resume_step) as logger,
            ProgressBar(self.total_steps, progress.step) as bar,
            self._dumping(),
        ):
            # Evaluate the untrained policy once, at step 0
            if progress.best is None:
                with self._saving_if_server_fails():
                    logger.log(self._evaluate(), 0)
                bar.restart()
            while not self._finished and stop.signal is None:
                before = progress.step
                evaluation: Metrics = {}
                # Collect, update, evaluate
                with self._saving_if_server_fails():
                    self.metrics.add(self._collect() | self._update())
                    if self._due(cfg.eval_freq, before) or self._finished:
                        evaluation = self._evaluate()
                # Log and save
                self.wall_time = time.perf_counter() - session
                saves = self._due(cfg.save_freq, before) or self._finished
                if evaluation or saves or cfg.log_freq == 0 or self._due(cfg.log_freq, before):
                    logger.log(self._row() | evaluation, progress.step)
                    progress.logged = progress.step
                    self.metrics.clear()
                bar.update(progress.step, self._rollout_metrics().get("rollout/success_rate_100"))
                if saves:
                    self.checkpoints.save(progress.step, self.state_dict())
            # Stopped by a signal, at any time: log an extra row, which a resumed run drops, and save
            if stop.signal is not None:
                if progress.logged < progress.step:
                    logger.log(self._row(), progress.step)
                self.checkpoints.save(progress.step, self.state_dict())
            # Export, compare the best model with the base policy, and write the summary; inside
            # `stop_signals`, so that another SIGTERM cannot interrupt it
            self._export()
            if self._finished and self._deployment is None:
                self._deployment = self._confirm(stop, bar)
                bar.update(progress.step, note=(self._deployment or unconfirmed(progress)).note)
                self.wall_time = time.perf_counter() - session
            return self._summarize(stop.signal)

    # --- one iteration --------------------------------------------------------------------------------

    def _collect(self) -> Metrics:
        """Step all envs `num_steps` times with the exploring residual."""
        start = time.perf_counter()
        schedules = self._set_schedules()
        sums: dict[str, torch.Tensor] = {}
        steps_before = self.env.env_steps
        for _ in range(self.learner.num_steps):
            action = self.learner.act(self.env.obs)
            if self.env.start_states is not None and isinstance(self.learner, ChoosesStartStates):
                self.env.keep(self.learner.start_states)
            transition, info = self.env.step(action)
            self.learner.observe(transition)
            self._track_episodes(info)
            for name, value in _step_metrics(transition, info).items():
                sums[name] = sums.get(name, 0.0) + value
        self.progress.step += self.env.env_steps - steps_before
        self.timer.collection += time.perf_counter() - start
        metrics = {name: float(value) / self.learner.num_steps for name, value in sums.items()}
        return schedules | metrics  # the mean of an adaptive scale takes precedence over the scheduled bound

    def _update(self) -> Metrics:
        start = time.perf_counter()
        metrics = self.learner.update()
        self.timer.update += time.perf_counter() - start
        return metrics

    def _set_schedules(self) -> Metrics:
        step, last = self.progress.step, self.total_steps - self._steps_per_iteration
        self.learner.set_progress(step / self.total_steps)
        fraction = min(step / max(last, 1), 1.0)  # 1 in the last iteration, so that final values are reached
        self.env.residual_scale = self.cfg.residual.scale_at(fraction)
        curriculum = self.env.vec_env.set_training_progress(
            fraction, _mean(self.progress.success), self.progress.episodes
        )
        return {"residual/scale": self.env.residual_scale, **curriculum}

    def _track_episodes(self, info: dict[str, Any]) -> None:
        ended, final = info["_final_info"], info["final_info"]
        if not ended.any():
            self.progress.decisions += 1
            return
        names = ("success_once", "episode_return", "episode_length")
        results = [final[name].float().tolist() for name in names]
        self.progress.add_episodes(ended.tolist(), *results, counts=(~info["restarted"]).tolist())

    @property
    def _finished(self) -> bool:
        return self.progress.step > self.total_steps - self._steps_per_iteration

    def _row(self) -> Metrics:
        """Averages since the last row, rollout metrics and times."""
        return self.metrics.row() | self._rollout_metrics() | self._times()

    def _rollout_metrics(self) -> Metrics:
        """Means over the most recent episodes, with the exploring residual."""
        recent = {
            "success_rate_100": self.progress.success,
            "ep_rew_mean": self.progress.returns,
            "ep_len_mean": self.progress.lengths,
        }
        return {f"rollout/{name}": _mean(values) for name, values in recent.items() if values}

    def _times(self) -> Metrics:
        """Wall time [s] in total and by part (of this session only), and env steps per second of wall
        time."""
        timer = self.timer
        return {
            "time/fps": self.progress.step / self.wall_time,
            "time/wall": self.wall_time,
            "time/setup": timer.setup,
            "time/simulation": timer.simulation,
            "time/base_policy": timer.base_policy,
            "time/learner": timer.collection - timer.simulation - timer.base_policy + timer.update,
            "time/evaluation": timer.evaluation,
        }

    def _due(self, freq: int, before: int) -> bool:
        return freq > 0 and self.progress.step // freq > before // freq

    # --- evaluation -----------------------------------------------------------------------------------

    def _evaluate(self) -> Metrics:
        """Evaluate the current policy without exploration, and export it if it is the best so far."""
        with self._evaluating():
            return self.selection.evaluate(self.learner, self.env.residual_scale, self.progress)

    def _confirm(self, stop: StopRequest, bar: ProgressBar) -> Deployment | None:
        """Compare the best model with the base policy after the last step; None if a signal stops it."""

        def show(done: int, total: int) -> None:
            bar.update(self.progress.step, note=f"comparing best_model with the base: episode {done}/{total}")

        with self._saving_if_server_fails(), self._evaluating():
            return self.selection.confirm(self.learner, self.progress, lambda: stop.signal is not None, show)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Context in which the evaluation envs are stepped; an error leaves them as those in use."""
        start = time.perf_counter()
        self._env_in_use = self.eval_env
        yield
        self._env_in_use = self.env
        self.timer.evaluation += time.perf_counter() - start

    # --- saving ---------------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """The state needed to resume exactly."""
        progress = {**self.progress.state_dict(), "metrics": self.metrics.state_dict()}
        return {"progress": progress, "learner": self.learner.state_dict(), "env": self.env.state_dict()}

    def _check_disk(self) -> None:
        """Raise an error if the checkpoints may not fit on the disk."""
        cfg, folders = self.cfg.run, (self.checkpoints.folder, self.checkpoints.segments.folder)
        checkpoint_bytes, replay_bytes = state_bytes(self.state_dict()), 0
        if isinstance(self.learner, HasReplay):
            per_row = self.env.num_envs * self.env.steps_per_action
            rows, kept = self.total_steps // per_row, cfg.keep_checkpoints * cfg.save_freq // per_row
            replay_bytes, unfinished = self.learner.replay_bytes(rows, kept)
            checkpoint_bytes += unfinished
        check_room(self.folder.path, (cfg.keep_checkpoints + 1) * checkpoint_bytes, replay_bytes, folders)

    def _resume(self) -> bool:
        """Restore the newest checkpoint and the wall time of the earlier sessions.

        Returns False for a run that was stopped before its first checkpoint, which starts from the beginning.
        """
        latest = self.checkpoints.latest()
        rows = read_metrics(self.folder.metrics_file) if self.folder.metrics_file.exists() else []
        if latest is None:
            # a run that got further has lost its checkpoints: starting again would overwrite its models
            if self.folder.summary_file.exists() or any(row["step"] > self._first_save for row in rows):
                raise CheckpointError(
                    f"{self.folder.checkpoints} has no checkpoint to resume from; "
                    "start a new run with another --output-dir"
                )
            _log.warning(
                "%s was stopped before its first checkpoint: training starts from the beginning",
                self.folder.path,
            )
            return False
        step, state = latest
        try:
            self.progress.load_state_dict(state["progress"])
            self.metrics.load_state_dict(state["progress"]["metrics"])
            self.learner.load_state_dict(state["learner"])
            self.env.load_state_dict(state["env"])
        except (CheckpointError, KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.checkpoints.files()[step]} does not match this run ({type(error).__name__}: {error});"
                " resume with the settings and the release that it was written with"
            ) from error
        times = [row["time/wall"] for row in rows if row["step"] <= self.progress.step and "time/wall" in row]
        self.wall_time = max(times, default=0.0)
        # A summary that is missing or damaged only costs another comparison with the base policy.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
            summary = parse_json(self.folder.summary_file.read_text("utf-8"))
            if summary["finished"] and summary["steps"] == self.progress.step:
                deployment, seconds = Deployment.from_summary(summary), float(summary["wall_time"])
                if math.isfinite(seconds):
                    self.wall_time = seconds
                    self._deployment = deployment if self._finished else None
        return True

    @property
    def _first_save(self) -> int:
        """The env steps after which the first checkpoint is due."""
        iterations = math.ceil(self.cfg.run.save_freq / self._steps_per_iteration)
        return iterations * self._steps_per_iteration if iterations else self.total_steps

    def _export(self) -> None:
        """Export the last policy."""
        model = self.folder.final_model if self._finished else self.folder.interrupted_model
        export_policy(model, self.cfg, self.learner, self.env.residual_scale, self.progress.step)

    def _summarize(self, stopped_by: int | None) -> dict[str, Any]:
        """Write the summary and return it."""
        progress = self.progress
        episodes = self.cfg.run.eval_episodes
        complete = (
            row for row in read_metrics(self.folder.metrics_file) if row.get("eval/episodes") == episodes
        )
        reached = next(
            (row for row in complete if row["eval/success_rate"] >= 0.95 and "time/wall" in row), None
        )
        summary = {
            "finished": self._deployment is not None,
            "signal": stopped_by,
            "steps": progress.step,
            "wall_time": self.wall_time,
            "evaluation_time": self.timer.evaluation,
            "steps_per_second": progress.step / self.wall_time if self.wall_time else 0.0,
            "best_success_rate": progress.best[0] if progress.best else None,
            "time_to_95": reached["time/wall"] if reached else None,
            "step_to_95": reached["step"] if reached else None,
            "model": (self.folder.final_model if self._finished else self.folder.interrupted_model).name,
            "deployment": dataclasses.asdict(self._deployment or unconfirmed(progress)),
        }
        write_json(self.folder.summary_file, summary)
        return summary

    @contextlib.contextmanager
    def _saving_if_server_fails(self) -> Iterator[None]:
        """If the server of a remote base policy fails, save the state from before this iteration."""
        if not self.env.base_policy.policy.remote:
            yield
            return
        step, whole = self.progress.step, checkpoint.copy_state(self.state_dict())
        try:
            yield
        except BasePolicyError as error:
            self.checkpoints.save(step, whole)
            raise BasePolicyError(
                f"{error}; saved a checkpoint at {step:,} steps. Once the server responds, resume with: "
                f"{shell_command('train', '--resume', self.folder.path)}"
            ) from error

    @contextlib.contextmanager
    def _dumping(self) -> Iterator[None]:
        """On a `NonFiniteError`, write a dump for debugging.

        It has the states attached to the error, the last observation of the env (training or evaluation) in
        which it was raised, and the state of the learner with its rollout.
        """
        try:
            yield
        except NonFiniteError as error:
            path = self.folder.path / "nonfinite_dump.safetensors"
            env = "evaluation" if self._env_in_use is self.eval_env else "training"
            state = {
                **error.dump,
                "env": env,
                "last_obs": self._env_in_use.obs,
                "learner": self.learner.state_dict(),
            }
            checkpoint.save_dump(path, state)
            raise NonFiniteError(f"{error}; the preceding states are in {path}") from error


def _step_metrics(transition: Transition, info: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Means over all envs of one step; the tensors stay on the device."""
    metrics = {f"reward/{name}": value.mean() for name, value in info["reward_terms"].items()}
    metrics |= {f"task/{name}": value.mean() for name, value in info["task_metrics"].items()}
    scale = info["residual_scale"]
    metrics["residual/magnitude"] = (scale * transition.residual_action).norm(dim=1).mean()
    metrics["residual/penalty"] = metrics.pop("reward/residual")
    if "base_uncertainty" in info:
        metrics |= {"residual/scale": scale.mean(), "base/uncertainty": info["base_uncertainty"].mean()}
    return metrics


def _mean(values: deque[float]) -> float:
    return sum(values) / len(values) if values else 0.0
