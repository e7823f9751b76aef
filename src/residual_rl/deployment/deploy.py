"""A policy on an arm, from settings: its env, the loop, and the record of what happened."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from residual_rl.config import SafetyLimitsCfg, TrainCfg
from residual_rl.deployment.arm_cfg import MAX_POSE_AGE, GuardCfg, LoopCfg
from residual_rl.deployment.arm_physics import make_arm_env
from residual_rl.deployment.command_log import CommandLog
from residual_rl.deployment.control_loop import ControlLoop, LoopResult
from residual_rl.deployment.guarded_arm import GuardedArm
from residual_rl.deployment.pose_source import BackgroundPoseSource
from residual_rl.errors import ArmError
from residual_rl.evaluation.evaluate import no_residual
from residual_rl.exported_policy import ExportedPolicy
from residual_rl.factory import make_residual_env_on
from residual_rl.registry import TASKS, load
from residual_rl.robots.arm_driver import ArmDriver, PoseSource
from residual_rl.robots.safety_limits import SafetyLimits
from residual_rl.utils.files import write_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class DeployCfg:
    """All settings of a deployment."""

    policy: TrainCfg
    """The task, the base policy and the composition."""
    loop: LoopCfg
    """How long, and from where."""
    guard: GuardCfg
    """When to stop, and how."""
    limits: SafetyLimitsCfg
    """Limits of the joint targets."""
    dry_run: bool = False
    """Send nothing."""
    max_pose_age: float = MAX_POSE_AGE
    """Age of the last seen pose at which the arm is stopped [s]."""


@dataclass
class Outcome:
    """What a deployment did."""

    result: LoopResult
    """Episodes, steps, and why it ended."""
    timing: dict[str, Any]
    """See `LoopTiming.summary`."""
    log: CommandLog
    """The commands, and the limits that acted."""


def deploy(
    cfg: DeployCfg,
    exported: ExportedPolicy | None,
    make_driver: Callable[[Any], ArmDriver],
    make_pose_source: Callable[[ArmDriver], PoseSource | None],
    folder: Path,
    begin: Callable[[ArmDriver, int], bool],
    should_stop: Callable[[], bool],
    on_outcome: Callable[[Outcome], None],
) -> Outcome:
    """Run a policy on an arm, and write `deploy.json` and `limits.csv` into `folder`.

    Args:
        cfg: the settings.
        exported: the residual policy; None: the base policy alone.
        make_driver: makes the arm, given the task's joints and units.
        make_pose_source: makes the pose source, given the arm.
        folder: where to write.
        begin: see `ControlLoop`; receives the arm too.
        should_stop: see `ControlLoop`.
        on_outcome: called when the arm has been stopped, also after an error.

    Raises:
        ArmError: something was wrong with the arm, or the stop itself failed.
    """
    # The env of the arm is the task's own, with the settings that an arm has of itself.
    spec = TASKS.get(cfg.policy.task_id)
    policy = dataclasses.replace(cfg.policy, task=spec.for_hardware(cfg.policy.task))
    simulated = load(spec.make)(policy.task, 1, 1, "cpu")
    driver = make_driver(simulated.hardware)
    limits = SafetyLimits(cfg.limits, driver.hardware, simulated.control_hz, simulated.kinematics)
    with CommandLog(folder / "limits.csv", driver.hardware) as log:
        guard = GuardedArm(driver, limits, cfg.guard, cfg.dry_run, log)
        pose_source = make_pose_source(driver)
        env = make_residual_env_on(make_arm_env(simulated, guard, pose_source, cfg.max_pose_age), policy)
        act = no_residual(env)
        if exported is not None:
            env.residual_scale = exported.residual_scale
            act = exported.actor(env.observation_space, env.action_dim, env.device)

        def begin_episode(number: int) -> bool:
            if isinstance(pose_source, BackgroundPoseSource):
                pose_source.wait_for_first()
            return begin(driver, number)

        loop = ControlLoop(env, act, guard, cfg.loop, begin_episode, should_stop)

        # Whatever happens, the record is written and shown after the arm has been stopped.
        try:
            loop.run()
        finally:
            outcome = Outcome(loop.result, guard.timing.summary(1.0 / simulated.control_hz), log)
            write_json(folder / "deploy.json", _to_json(cfg, outcome))
            on_outcome(outcome)
            if isinstance(pose_source, BackgroundPoseSource):
                pose_source.close()
    if outcome.result.failed is not None:
        raise ArmError(outcome.result.failed)
    return outcome


def _to_json(cfg: DeployCfg, outcome: Outcome) -> dict[str, Any]:
    result = outcome.result
    return {
        "format_version": FORMAT_VERSION,
        "task": cfg.policy.task_id,
        "base_policy": cfg.policy.base_policy_id,
        "dry_run": cfg.dry_run,
        "loop": dataclasses.asdict(cfg.loop),
        "guard": dataclasses.asdict(cfg.guard),
        "safety": dataclasses.asdict(cfg.limits),
        "reason": result.reason,
        "stop_failed": result.failed,
        "steps": result.steps,
        "episodes": result.episodes,
        "timing": outcome.timing,
        **outcome.log.to_json(),
    }
