"""`residual-rl train-robot`: train a residual on a robot, or on a simulated one, with the learner beside the
control loop."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from residual_rl.cli.flags import (
    ROBOT,
    has_flag,
    parse_flags,
    parse_head,
    require_target,
    resume_folder,
    split_flags,
)
from residual_rl.cli.train import read_config
from residual_rl.config import PARTS, TrainCfg, replace_fields
from residual_rl.deployment.arm_cfg import GuardCfg
from residual_rl.deployment.learning_cfg import RobotCfg
from residual_rl.errors import ConfigError
from residual_rl.registry import BASE_POLICIES, LEARNED_BASE_LEARNER, TASKS
from residual_rl.utils.text import shell_command
from residual_rl.utils.validation import CheckedCfg, PositiveInt

if TYPE_CHECKING:
    from residual_rl.deployment.training_arm import TrainingArm
    from residual_rl.runs.run_folder import RunFolder

ROBOT_DEFAULTS = {"num_envs": 1, "num_threads": 1, "total_timesteps": 81_000, "demo_share": 0.25}
"""Settings of a training whose defaults differ here: one robot for 45 minutes at 30 Hz, and a quarter of each
batch from interventions, once there are some."""


@dataclasses.dataclass(frozen=True)
class TrainRobotFlags:
    """Flags of `train-robot` that are not settings."""

    base_policy: str = ""
    """Frozen base policy of the residual: an id of `residual-rl list`."""
    learner: str = ""
    """Off-policy algorithm that trains the residual: sac, gated-sac (default over learned bases) or td3."""
    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=["--out", "--output"])] = None
    """Run folder to create. None: runs/TASK-robot-DATE-TIME."""


class Session(NamedTuple):
    """What a session needs to know."""

    cfg: TrainCfg
    robot: RobotCfg
    guard: GuardCfg
    lerobot_flags: list[str]


@dataclasses.dataclass(frozen=True)
class ResumeFlags(CheckedCfg):
    """Flags of `train-robot --resume` besides those of the session."""

    resume: Path
    """Run folder to resume, after its last finished episode."""
    total_timesteps: Annotated[PositiveInt | None, tyro.conf.arg(aliases=["--total-steps"])] = None
    """Total number of steps, in place of the stored one."""


def main(argv: Sequence[str]) -> int:
    """Parse, train, and print the outcome."""
    if has_flag(argv, "--resume"):
        return _resume(argv)
    about = "Train a residual on a robot, or resume with --resume RUN"
    task_id, rest = require_target(argv, "train-robot", "TASK", about)
    lerobot_flags, rest = split_flags(rest, ROBOT)
    cfg, robot, guard, output_dir = parse(task_id, rest)
    from residual_rl.runs.run_folder import RunFolder, output_folder

    with output_folder(output_dir, "runs", f"{task_id}-robot") as output:
        return _train(Session(cfg, robot, guard, lerobot_flags), RunFolder(output), resume=False)


def parse(task_id: str, argv: Sequence[str]) -> tuple[TrainCfg, RobotCfg, GuardCfg, Path | None]:
    """The settings of the run, of the session and of the guard, and the run folder, from the arguments of
    `train-robot TASK`."""
    command = f"train-robot {task_id}"
    # The defaults for the base policy and the learner that the arguments name.
    head = parse_head(TrainRobotFlags(), argv, command)
    base_policy = head.base_policy or TASKS.get(task_id).base_policy
    learned = BASE_POLICIES.get(base_policy).learned
    cfg = TrainCfg.default(task_id, base_policy, head.learner or (LEARNED_BASE_LEARNER if learned else "sac"))
    parts = (getattr(cfg, part) for part in PARTS)
    known = {name for part in parts if part is not None for name in vars(part)}
    cfg = replace_fields(cfg, {name: value for name, value in ROBOT_DEFAULTS.items() if name in known})
    # All flags.
    own = TrainRobotFlags(base_policy=cfg.base_policy_id, learner=cfg.learner_id)
    session = {"robot": RobotCfg(), "guard": GuardCfg()}
    groups = {"own": own, **session, **{name: getattr(cfg, name) for name in PARTS}}
    parsed = parse_flags(groups, argv, command, "Train a residual on a robot, with the learner beside it.")
    flags: TrainRobotFlags = parsed.pop("own")
    robot: RobotCfg = parsed.pop("robot")
    guard: GuardCfg = parsed.pop("guard")
    cfg = dataclasses.replace(cfg, **parsed)
    if cfg.run.num_envs != 1:
        raise ConfigError(f"num_envs must be 1, one robot, not {cfg.run.num_envs}")
    return cfg, robot, guard, flags.output_dir


def _resume(argv: Sequence[str]) -> int:
    lerobot_flags, argv = split_flags(argv, ROBOT)
    folder = resume_folder(argv, "train-robot")
    args = argv if folder is not None else ["--help"]
    groups = {"own": ResumeFlags, "robot": RobotCfg(), "guard": GuardCfg()}
    parsed = parse_flags(groups, args, "train-robot", "Resume an interrupted run.")
    options: ResumeFlags = parsed["own"]
    from residual_rl.runs.locate import run_to_resume
    from residual_rl.runs.run_folder import RunFolder

    run = RunFolder(run_to_resume(options.resume, "train-robot"))
    cfg = read_config(run)
    if options.total_timesteps is not None:
        cfg = replace_fields(cfg, {"total_timesteps": options.total_timesteps})
    return _train(Session(cfg, parsed["robot"], parsed["guard"], lerobot_flags), run, resume=True)


def _make_arm(session: Session) -> TrainingArm | None:
    """The arm, connected; None for a task without one, whose env is the robot."""
    from residual_rl.deployment.training_arm import make_training_arm

    cfg, robot, guard, lerobot_flags = session
    has_arm = TASKS.get(cfg.task_id).simulated_arm is not None
    if robot.sim and lerobot_flags:
        raise ConfigError("--sim is for a simulated arm: leave out the --robot flags")
    if not robot.sim and not has_flag(lerobot_flags, f"{ROBOT}type"):
        raise ConfigError(
            "train-robot needs an arm: give --robot.type and LeRobot's other flags for it, or --sim for a "
            "simulated one"
        )
    return None if robot.sim and not has_arm else make_training_arm(cfg, robot, guard, lerobot_flags)


def _train(session: Session, folder: RunFolder, resume: bool) -> int:
    from residual_rl.deployment.robot_runner import RobotRunner
    from residual_rl.utils.files import write_json

    cfg, robot = session.cfg, session.robot
    with contextlib.ExitStack() as stack:
        if resume:
            stack.enter_context(folder.resume())
        arm = _make_arm(session)
        if arm is not None:
            stack.callback(arm.close)
        # The settings of the session are a record in `config.json`: they are not read again.
        runner = RobotRunner(cfg, robot, folder, resume, arm=arm)
        stack.callback(runner.operator.close)
        config = {**runner.cfg.to_dict(), "robot": dataclasses.asdict(robot)}
        if resume:
            write_json(folder.config_file, config)
        else:
            stack.enter_context(folder.start(config))
        runner.cfg.write_signature(folder.path)
        runner.start()
        return _report(runner.learn(), robot, folder)


def _report(summary: dict[str, Any], robot: RobotCfg, folder: RunFolder) -> int:
    """Print the outcome; returns the exit code."""
    from residual_rl.evaluation.deployment import Deployment
    from residual_rl.utils.console import Console

    console, path = Console(), folder.path
    so_far = (
        f"{summary['steps']:,} steps ({summary['robot_minutes']:.1f} minutes of the robot), "
        f"{summary['episodes']} episodes, {summary['interventions']} interventions"
    )
    if not summary["finished"]:
        resume = shell_command("train-robot", "--resume", path)
        console.say(f"Stopped. Saved after the last finished episode: {so_far}.")
        console.say(f"Resume with the flags of the session: {resume}")
        return 128 + int(summary["signal"]) if summary["signal"] else 0
    rate = summary["success_rate_100"]
    console.say(f"Trained {so_far}; {100 * rate:.1f} % success in the last 100 episodes.")
    if robot.real_time and summary["rate"]:
        jitter = f"{1000 * summary['jitter']:.1f} ms"
        console.say(f"The loop ran at {summary['rate']:.2f} Hz with a jitter of {jitter} (99 %).")
    deployment = Deployment.from_summary(summary)
    assert deployment is not None
    console.say(deployment.text)
    console.say(f"Evaluate it in simulation: {shell_command('eval', path, '--compare-base')}")
    return 0
