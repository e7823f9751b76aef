"""Runs a policy on an arm, at the policy's rate, until it is done or something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from residual_rl.deployment.arm_cfg import LoopCfg
from residual_rl.deployment.arm_physics import ArmPhysics
from residual_rl.deployment.guarded_arm import GuardedArm
from residual_rl.deployment.moves import move_to
from residual_rl.envs.task import Quantities
from residual_rl.envs.task_env import TaskEnv
from residual_rl.errors import ArmError
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import Obs
from residual_rl.utils.text import one_line


@dataclass
class LoopResult:
    """What happened."""

    episodes: list[dict[str, float]] = field(default_factory=list)
    """Metrics of each episode that ended; its success is the task's own, by the pose source."""
    steps: int = 0
    """Policy steps."""
    reason: str = "done"
    """Why the loop ended."""
    failed: str | None = None
    """What failed in the stop itself; None: the arm was stopped."""


class ControlLoop:
    """A policy on an arm.

    Args:
        env: the run's env on `TaskEnv(task, ArmPhysics(guard))`.
        act: the residual policy, from observations to residual actions [1, A].
        guard: the arm; connected and stopped by this loop.
        cfg: see `LoopCfg`.
        begin: called before each episode with its number, from 0, when the arm is at rest; it may reset a
            simulation, or ask the user. False ends the loop.
        should_stop: polled in each period; True ends the loop.
        on_step: called after each step with the number of steps.
    """

    def __init__(
        self,
        env: ResidualEnv,
        act: Callable[[Obs], Tensor],
        guard: GuardedArm,
        cfg: LoopCfg,
        begin: Callable[[int], bool] = lambda number: True,  # noqa: ARG005
        should_stop: Callable[[], bool] = lambda: False,
        on_step: Callable[[int], None] = lambda steps: None,  # noqa: ARG005
    ):
        assert isinstance(env.vec_env, TaskEnv)
        assert isinstance(env.vec_env.physics, ArmPhysics)
        self._env, self._act, self._guard, self._cfg = env, act, guard, cfg
        self._begin, self._should_stop, self._on_step = begin, should_stop, on_step
        self._physics = env.vec_env.physics
        self._physics.begin_episode = self._begin_episode
        self._number = 0
        self._ended = False
        self.result = LoopResult()

    def run(self) -> LoopResult:
        """Connect, run, and stop the arm, whatever happens.

        An exception of the policy, the arm or the pose source is raised after the stop; `result` then has its
        message as the reason.
        """
        result = self.result
        try:
            self._guard.connect()
            self._run()
        except BaseException as error:
            result.reason = one_line(error) or type(error).__name__
            raise
        finally:
            result.failed = self._guard.stop(result.reason)
            self._guard.disconnect()
        return result

    @torch.no_grad()
    def _run(self) -> None:
        self._env.reset()
        began = self._guard.now()
        while not self._ended:
            action = self._act(self._env.obs)
            if self._is_over(began):  # before another command
                return
            for _, info in self._env.steps(action):
                self._count(info)
                if self._ended or self._is_over(began):
                    return

    def _count(self, info: dict[str, Any]) -> None:
        self.result.steps += 1
        if info["_final_info"].any():
            self.result.episodes.append(_numbers(info["final_info"]))
        self._on_step(self.result.steps)

    def _is_over(self, began: float) -> bool:
        """Whether the user or the time limit ends the loop between two steps."""
        limit = self._cfg.seconds
        if self._should_stop():
            self.result.reason = "stopped by a signal"
        elif limit is not None and self._guard.now() - began >= limit:
            if self._guard.stopped is not None:  # by the watchdog: this is no end without a failure
                raise ArmError(self._guard.stopped)
            self.result.reason = f"{limit:g} s have passed"
        else:
            return False
        return True

    def _begin_episode(self, episode: Quantities) -> bool:
        """The reset procedure of the env."""
        self._guard.rest()
        number, self._number = self._number, self._number + 1
        going_on = number < self._cfg.episodes and not self._should_stop()
        self._ended = not (going_on and self._begin(number) and self._to_start(episode))
        if self._ended and self._should_stop():
            self.result.reason = "stopped by a signal"
        return number == 0 or not self._ended

    def _to_start(self, episode: Quantities) -> bool:
        start = episode.get("start_joint_position")
        if not self._cfg.move_to_start or start is None:
            return True
        goal = start[0].double().numpy()
        return move_to(
            self._guard, goal, self._cfg.start_speed, self._physics.period, should_stop=self._should_stop
        )


def _numbers(final_info: dict[str, Any]) -> dict[str, float]:
    return {name: float(value[0]) for name, value in final_info.items()}
