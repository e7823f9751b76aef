"""Learning on a robot: the control loop, with the learner beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from residual_rl.base_policies.callables import load_callable
from residual_rl.config import TrainCfg
from residual_rl.demos.transitions import load_demonstrations
from residual_rl.deployment.learner_process import (
    AsynchronousLearning,
    Learning,
    SynchronousLearning,
    make_robot_learner,
)
from residual_rl.deployment.learning_cfg import RobotCfg
from residual_rl.deployment.operators import Operator, Signals, checked_action, make_operator
from residual_rl.deployment.pace import Pace, SimulatedClock, WallClock
from residual_rl.deployment.robot_progress import Episode, RobotProgress
from residual_rl.deployment.training_arm import TrainingArm
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.evaluation.deployment import Deployment
from residual_rl.exported_policy import export_policy
from residual_rl.factory import make_training_env, with_obs_keys
from residual_rl.residual_env import StepHook
from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.runs.logger import Logger
from residual_rl.runs.progress_bar import ProgressBar
from residual_rl.runs.run_folder import RunFolder
from residual_rl.types import Obs, State, Transition
from residual_rl.utils.files import write_json
from residual_rl.utils.seeding import training_seed_start
from residual_rl.utils.signals import StopRequest, stop_signals


class RobotRunner:
    """Trains a residual on a robot, or on a simulated one, in a run folder.

    Args:
        cfg: the settings of the run; with one env.
        robot: the settings of the session.
        folder: the run folder. It must be started or resumed before `start`; the constructor writes nothing.
        resume: continue after the last finished episode.
        operator: the person; None: that of `robot.operator`.
        arm: the robot; None: the simulated env of the task.

    Raises:
        ConfigError: incompatible settings.
        CheckpointError: there is nothing to resume from.
    """

    def __init__(
        self,
        cfg: TrainCfg,
        robot: RobotCfg,
        folder: RunFolder,
        resume: bool = False,
        operator: Operator | None = None,
        arm: TrainingArm | None = None,
    ):
        torch.set_num_threads(cfg.run.torch_threads)
        self.robot = robot
        self.folder = folder
        self.arm = arm
        self.env = make_training_env(cfg) if arm is None else arm.env
        if self.env.steps_per_action > 1:
            raise ConfigError("a person can take over at each step only with --chunk step, not whole")
        self.cfg = with_obs_keys(cfg, self.env)
        self._solved: Callable[[Obs], Any] | None = (
            load_callable(robot.success_source, "success_source") if robot.success_source else None
        )
        self.intervention = InterventionHook(self.env.step_hook)
        self.env.step_hook = self.intervention
        self.env.vec_env.episode_seeds.use_list([])  # after an episode, the env idles until the next reset
        self.progress = RobotProgress()
        self.episode = Episode()
        rate = self.env.vec_env.control_hz
        if arm is not None:
            self.pace = Pace(rate, arm.guard, waits=False)
        else:
            self.pace = Pace(rate, WallClock() if robot.real_time else SimulatedClock())
        self.checkpoints = CheckpointFolder(folder.checkpoints, cfg.run.keep_checkpoints)
        self.learner = make_robot_learner(self.cfg, self.env.observation_space, self.env.action_dim)
        """The learner that acts."""
        self.learning: Learning
        """Learns; from `start` on."""
        self._resumed = resume and self._resume()
        if not self._resumed:
            if getattr(self.cfg.learner, "demos", None) is not None:
                load_demonstrations(self.cfg, self.learner, self.env)
            self.learner.collect_interventions()
        # Last, since a keyboard takes over the terminal.
        self.operator = make_operator(robot.operator, self.env.vec_env) if operator is None else operator

    def start(self) -> None:
        """Begin the session: start the learner's process, and write the first checkpoint of a new run, whose
        best model is the base policy. Raises `LearnerError` and `WriteError`."""
        cfg, learner = self.cfg, self.learner
        if not self._resumed:
            self.checkpoints.save(0, {**self._state(), "learner": learner.state_dict()})
            export_policy(self.folder.best_model, cfg, learner, 0.0, 0)
        if self.robot.real_time:
            space, interval = self.env.observation_space, self.robot.weights_interval
            learner.load_policy_state_dict(learner.policy_state_dict())
            self.learning = AsynchronousLearning(cfg, learner, space, self.checkpoints, interval)
        else:
            self.learning = SynchronousLearning(learner, self.checkpoints)

    def learn(self) -> dict[str, Any]:
        """Train, after `start`, until `total_timesteps`, or until a signal or the operator stops it. Returns
        the summary.

        An error ends the session; the run can be resumed after the last finished episode.
        """
        start, total = time.monotonic(), self.cfg.run.total_timesteps
        with (
            contextlib.closing(self.learning),
            contextlib.closing(self.operator),
            stop_signals() as stop,
            Logger(self.folder.path, resume_step=self.progress.step) as logger,
            ProgressBar(total, self.progress.step, title="robot") as status,
            contextlib.closing(self.env if self.arm is None else self.arm) as robot,  # stopped first
        ):
            while not self._finished and stop.signal is None:
                self._begin_episode(stop)
                ended = False
                while not ended and stop.signal is None:
                    ended = self._step(stop)
                    self._show(status)
                if ended:
                    self._end_episode(logger)
            robot.close()
            self.learning.wait()
            self._export(self.folder.final_model if self._finished else self.folder.interrupted_model)
            return self._summarize(stop.signal, time.monotonic() - start)

    # --- an episode -----------------------------------------------------------------------------------

    def _begin_episode(self, stop: StopRequest) -> None:
        """Prepare the scene, wait until the last episode is saved, and reset the robot, which may block."""

        def should_stop() -> bool:
            return stop.signal is not None

        if self.robot.reset == "prompt":
            self.operator.prepare(should_stop)
        self.learning.wait(should_stop)
        if should_stop():  # the arm is stopped at once, whatever the learner does
            return
        self.episode = Episode()
        done = self.progress.step / self.cfg.run.total_timesteps
        self.env.residual_scale = self.cfg.residual.scale_at(min(done, 1.0))
        seed = training_seed_start(self.cfg.run.seed) + self.progress.episodes
        if self.arm is None:
            self.env.reset(seed=[seed])
        else:
            self.arm.begin(seed, should_stop)
        self.pace.restart()

    def _step(self, stop: StopRequest) -> bool:
        """One step of the control loop. Returns whether the episode has ended."""
        # Act: the policy, or the person in its place.
        env, obs = self.env, self.env.obs
        self.learning.refresh()
        action = self.learner.act(obs)
        signals = self.operator.signals(obs)
        self.intervention.action = None
        if signals.action is not None:
            action = self._intervene(signals.action)

        # Step at the start of the next period.
        self.pace.wait()
        transition, _ = env.step(action)

        # Judge, learn and count.
        transition = self._judged(transition, signals)
        self.learning.observe(transition)
        self._count(transition)
        if signals.stop:
            stop.signal = stop.signal or 0
        return bool(transition.terminated | transition.truncated)

    def _intervene(self, action: Tensor) -> Tensor:
        """The residual action [1, A] closest to a person's `action` [A], which is executed in its place; the
        base policy is queried anew at the next observation."""
        env = self.env
        wanted = checked_action(action, env.action_dim, env.device)
        env.base_policy.drop_chunks(torch.ones(1, dtype=torch.bool, device=env.device))
        self.intervention.action = wanted
        residual = env.composition.invert(env.obs["base_action"], wanted, env.base_policy.uncertainty)
        return residual.clamp(-1.0, 1.0)

    def _judged(self, transition: Transition, signals: Signals) -> Transition:
        """The transition with the outcome that the operator or the success source reports."""
        commanded = torch.tensor([signals.action is not None], device=self.env.device)
        transition = dataclasses.replace(transition, intervention=commanded)
        ended = transition.terminated | transition.truncated
        seen = self._solved is not None and bool(self._solved(transition.next_obs))
        success = torch.full_like(ended, signals.success or seen) & ~transition.terminated
        return dataclasses.replace(
            transition,
            reward=transition.reward + self.robot.success_reward * success,
            terminated=transition.terminated | success,
            truncated=(transition.truncated | signals.end) & ~transition.terminated & ~success,
            success=(transition.success if transition.success is not None else ended & False) | success,
        )

    def _count(self, transition: Transition) -> None:
        episode = self.episode
        commanded = bool(transition.intervention)
        scale = self.env.composition.residual_scale(self.env.base_policy.uncertainty)
        episode.steps += 1
        episode.episode_return += float(transition.reward)
        episode.success = bool(transition.success)
        episode.interventions += commanded and not episode.commanded
        episode.intervened_steps += commanded
        episode.residual_magnitude += float((scale * transition.residual_action).norm())
        episode.commanded = commanded

    def _end_episode(self, logger: Logger) -> None:
        """Save, log, and keep the policy if it is the best."""
        if self.arm is not None:
            self.arm.rest()
        best = self.progress.add(self.episode, self.robot.best_window)
        self.learning.save(self.progress.step, self._state())
        if best:
            self._export(self.folder.best_model)
        metrics = self.progress.metrics(self.episode, self.env.vec_env.control_hz) | self.learning.metrics
        if self.robot.real_time:
            metrics |= {"robot/rate": self.pace.rate, "robot/jitter": self.pace.jitter()}
            metrics |= {"robot/missed_steps": self.pace.missed, "robot/learner_lag": self.learning.lag}
        logger.log(metrics, self.progress.step)

    def _show(self, status: ProgressBar) -> None:
        progress, episode = self.progress, self.episode
        note = (
            f"{self.pace.rate:.1f} Hz  {progress.episodes} episodes  "
            f"{progress.interventions + episode.interventions} interventions  "
            f"learner {self.learning.lag} updates behind"
        )
        status.update(progress.step + episode.steps, progress.success_rate, note)

    # --- saving ---------------------------------------------------------------------------------------

    def _state(self) -> State:
        return {
            "progress": self.progress.state_dict(),
            "base_policy": self.env.base_policy.state_dict(),
            "robot": True,
        }

    def _resume(self) -> bool:
        """Restore the newest checkpoint; False if a run was stopped before its first one."""
        latest = self.checkpoints.latest()
        if latest is None:
            return False
        state = latest[1]
        if "robot" not in state:
            raise CheckpointError(
                f"{self.folder.path} is a run of `residual-rl train`, which also resumes it; to learn on a "
                "robot, start a new run"
            )
        try:
            self.progress.load_state_dict(state["progress"])
            self.learner.collect_interventions()
            self.learner.load_state_dict(state["learner"])
            self.env.base_policy.load_state_dict(state["base_policy"])
        except (CheckpointError, KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint in {self.folder.checkpoints} does not match this run "
                f"({type(error).__name__}: {error}); resume with the release that it was written with"
            ) from error
        return True

    def _export(self, folder: Path) -> None:
        export_policy(folder, self.cfg, self.learner, self.env.residual_scale, self.progress.step)

    @property
    def _finished(self) -> bool:
        return self.progress.step >= self.cfg.run.total_timesteps

    def _summarize(self, stopped_by: int | None, seconds: float) -> dict[str, Any]:
        """Write the summary and return it."""
        progress = self.progress
        policy: Literal["residual", "base"] = "residual" if progress.best_step else "base"
        rate = progress.best_rate if progress.best_step else None
        window = self.robot.best_window
        deployment = Deployment(policy, False, progress.best_step, success_rate=rate, window=window)
        summary = {
            "finished": self._finished,
            "signal": stopped_by,
            "steps": progress.step,
            "episodes": progress.episodes,
            "interventions": progress.interventions,
            "success_rate_100": progress.success_rate,
            "robot_minutes": progress.step / self.env.vec_env.control_hz / 60.0,
            "wall_time": seconds,
            "rate": self.pace.rate,
            "jitter": self.pace.jitter(),
            "missed_steps": self.pace.missed,
            "deployment": dataclasses.asdict(deployment),
        }
        write_json(self.folder.summary_file, summary)
        return summary


class InterventionHook:
    """Executes `action` [1, A] in place of the composed one, unless it is None.

    Args:
        inner: a hook that receives the action after that, such as the limits of a robot.
    """

    def __init__(self, inner: StepHook | None = None):
        self.action: Tensor | None = None
        self._inner = inner

    def before_step(self, action: Tensor, stepping: Tensor) -> Tensor:
        """See `StepHook`."""
        action = action if self.action is None else self.action
        return action if self._inner is None else self._inner.before_step(action, stepping)

    def after_step(self, obs: Obs) -> None:
        """See `StepHook`."""
        if self._inner is not None:
            self._inner.after_step(obs)
