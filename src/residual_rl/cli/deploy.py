"""`residual-rl deploy`: run a base policy or a trained run on an arm, within limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.table import Table

from residual_rl.cli.flags import HELP, ROBOT, has_flag, parse_flags, parse_head, require_target, split_flags
from residual_rl.config import ResidualScale, SafetyLimitsCfg, TrainCfg
from residual_rl.deployment.arm_cfg import MAX_POSE_AGE, GuardCfg, LoopCfg
from residual_rl.deployment.deploy import DeployCfg, Outcome, deploy
from residual_rl.deployment.operators import wait_for_enter
from residual_rl.deployment.pose_source import BackgroundPoseSource, load_pose_source
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.evaluation.deployment import deployment_text
from residual_rl.exported_policy import ExportedPolicy, find_policy
from residual_rl.registry import BASE_POLICIES, TASKS, load
from residual_rl.robots.arm_driver import ArmDriver, PoseSource
from residual_rl.robots.hardware_units import HardwareUnits
from residual_rl.runs.run_folder import RunFolder, output_folder
from residual_rl.utils.console import Console
from residual_rl.utils.files import make_folder
from residual_rl.utils.seeding import EVAL_SEED
from residual_rl.utils.sensitive import CodeName
from residual_rl.utils.signals import StopRequest, stop_signals
from residual_rl.utils.text import shell_command
from residual_rl.utils.validation import CheckedCfg, EpisodeSeed, PositiveFloat


@dataclasses.dataclass(frozen=True)
class DeployFlags(CheckedCfg):
    """Flags of `deploy` that are not settings of the loop."""

    sim: bool = False
    """Run on the task's simulated arm, in place of a robot of LeRobot's."""
    real_time: bool = True
    """Let the simulated arm move in wall time; otherwise it is as fast as this computer."""
    first_seed: EpisodeSeed = EVAL_SEED
    """Seed of a simulated arm's first episode; the others follow."""
    dry_run: bool = False
    """Send nothing, and show what would be sent from where the arm is."""
    pose_source: CodeName = ""
    """`module:function` that returns the pose of the task's object, see the docs; a simulated arm has its
    own."""
    max_pose_age: PositiveFloat = MAX_POSE_AGE
    """Age of the last seen pose at which the arm is stopped [s]."""
    answer_timeout: PositiveFloat = 0.1
    """Longest time for an answer of the robot, its cameras included [s]."""
    task: str | None = None
    """Task of a base policy; a run has its own."""
    model: str | None = None
    """best, final, interrupted, or the path of an exported policy. None: best, which is the base policy where
    training has shown no gain; a training on a robot cannot tell, and says so."""
    residual_scale: Annotated[ResidualScale | None, tyro.conf.arg(aliases=["--alpha"])] = None
    """Bound of the residual. None: that of the exported model."""
    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=["--out", "--output"])] = None
    """Folder for `deploy.json` and `limits.csv`. None: runs/deploy-DATE-TIME."""


def main(argv: Sequence[str]) -> int:
    """Parse, run, stop the arm, and print what happened."""
    target, rest = require_target(argv, "deploy", "RUN|POLICY", "Run a policy on an arm")
    robot, words = split_flags(rest, ROBOT)
    head = parse_head(DeployFlags(), words, f"deploy {target}")
    cfg, exported, note = _policy(target, head)
    flags, settings = _parse(target, words, cfg)
    spec = TASKS.get(cfg.task_id)
    if not flags.sim and not has_flag(robot, f"{ROBOT}type"):
        others = " or --sim for the task's simulated arm" if spec.simulated_arm else ""
        raise ConfigError(f"deploy needs an arm: give --robot.type and LeRobot's other flags for it,{others}")
    if flags.sim and (robot or spec.simulated_arm is None):
        raise ConfigError("--sim needs a task with a simulated arm, and no --robot flags")
    if flags.sim and flags.pose_source:
        raise ConfigError("a simulated arm is its own pose source: leave out --pose-source")
    if flags.pose_source:
        load_pose_source(flags.pose_source)  # a misspelt one is an error before LeRobot is imported
    if exported is not None and flags.residual_scale is not None:
        exported = dataclasses.replace(exported, residual_scale=flags.residual_scale)
    torch.set_num_threads(cfg.run.torch_threads)

    console = Console()
    console.say(note)
    with output_folder(flags.output_dir, "runs", "deploy") as folder, stop_signals() as request:
        make_folder(folder)
        deploy(
            settings,
            exported,
            lambda hardware: _make_driver(flags, settings, robot, hardware),
            lambda driver: _pose_source(flags, driver),
            folder,
            lambda driver, number: _begin(driver, number, flags, settings, request, console),
            lambda: request.signal is not None,
            lambda outcome: _show(outcome, settings, folder, console),
        )
    return 128 + int(request.signal) if request.signal is not None else 0


def _policy(target: str, flags: DeployFlags) -> tuple[TrainCfg, ExportedPolicy | None, str]:
    """Settings, residual and description of the run at `target`, or of the base policy of that id."""
    path = Path(target)
    if path.exists():
        if flags.task is not None:
            raise ConfigError("a run has its own task: leave out --task")
        found = find_policy(path, flags.model)
        exported = found.exported
        note = None
        if found.run is not None and found.file.parent == RunFolder(found.run).best_model:
            note = deployment_text(RunFolder(found.run).summary_file)
        return exported.cfg, exported, note or f"Policy: {found.file.parent}"
    try:
        BASE_POLICIES.get(target)
    except UnknownNameError as error:
        raise ConfigError(f"{target} is neither a run folder nor a base policy: {error}") from None
    if flags.task is None:
        raise ConfigError(
            f"a base policy needs a task: {shell_command('deploy', target, '--task', 'TASK')} …"
        )
    return TrainCfg.default(flags.task, target), None, f"Policy: the base policy {target} alone"


def _parse(target: str, argv: Sequence[str], cfg: TrainCfg) -> tuple[DeployFlags, DeployCfg]:
    limits = SafetyLimitsCfg(
        **{field.name: getattr(cfg.safety, field.name) for field in dataclasses.fields(SafetyLimitsCfg)}
    )
    groups = {
        "own": DeployFlags(),
        "loop": LoopCfg(),
        "guard": GuardCfg(),
        "limits": limits,
        "settings": cfg.task,
        "base": cfg.base,
    }
    about = (
        "Run a policy on an arm, within limits. The arm is any robot of LeRobot, by LeRobot's own flags: "
        "--robot.type so101_follower --robot.port /dev/ttyACM0 --robot.id NAME …"
    )
    words = argv if HELP.isdisjoint(argv) else ["--help"]
    parsed = parse_flags(groups, words, f"deploy {target}", about)
    flags: DeployFlags = parsed["own"]
    policy = dataclasses.replace(cfg, task=parsed["settings"], base=parsed["base"])
    return flags, DeployCfg(
        policy, parsed["loop"], parsed["guard"], parsed["limits"], flags.dry_run, flags.max_pose_age
    )


def _make_driver(
    flags: DeployFlags, settings: DeployCfg, robot: Sequence[str], hardware: HardwareUnits
) -> ArmDriver:
    if not flags.sim:
        from residual_rl.lerobot.arm import make_lerobot_arm

        return make_lerobot_arm(robot, hardware, settings.guard.at_exit, flags.answer_timeout)
    task: Any = settings.policy.task
    cameras = {}
    if getattr(task, "obs_mode", "state") != "state":
        cameras = dict.fromkeys(task.obs_cameras, task.image_size)
    make = load(str(TASKS.get(settings.policy.task_id).simulated_arm))
    driver: ArmDriver = make(task, flags.first_seed, real_time=flags.real_time, cameras=cameras)
    return driver


def _pose_source(flags: DeployFlags, driver: ArmDriver) -> PoseSource | None:
    if flags.pose_source:
        return BackgroundPoseSource(load_pose_source(flags.pose_source))
    if flags.sim:
        assert callable(driver)
        return driver
    return getattr(driver, "object_pose", None) if getattr(driver, "simulated", False) else None


def _begin(
    driver: Any, number: int, flags: DeployFlags, settings: DeployCfg, request: StopRequest, console: Console
) -> bool:
    """Prepare an episode: reset a simulated arm; ask the user before the second and later ones of a real
    arm."""
    if flags.sim or getattr(driver, "simulated", False):
        driver.reset(flags.first_seed + number)
        return True
    if number:
        console.say(f"Next: episode {number + 1} of {settings.loop.episodes}.")
        wait_for_enter(lambda: request.signal is not None)
    return request.signal is None


def _show(outcome: Outcome, settings: DeployCfg, folder: Path, console: Console) -> None:
    """Print why it ended, the commands, the limits that acted, and the timing."""
    result, timing = outcome.result, outcome.timing
    is_sent = outcome.log.num_commands and not settings.dry_run
    state = _state(settings, outcome) if is_sent or result.failed else "nothing was sent"
    console.say(f"Ended after {result.steps} steps: {result.reason}; {state}.")
    if result.episodes:
        solved = sum(episode["success_once"] for episode in result.episodes)
        console.say(f"Episodes: {len(result.episodes)}, of which {solved:.0f} were solved.")
    if outcome.log.num_commands:
        console.print(outcome.log.joints_table(settings.dry_run))
    if outcome.log.acted:
        console.print(outcome.log.limits_table())
    table = Table("", "median", "99 %", "worst", title_justify="left")
    table.title = f"Timing, at {1.0 / timing['period']:.2f} Hz"
    for name, text in (("latency", "from reading to command"), ("jitter", "off the period")):
        values = [timing[name][key] for key in ("median", "p99", "worst")]
        table.add_row(text, *("" if value is None else f"{1000 * value:.1f} ms" for value in values))
    console.print(table)
    console.say(f"Record: {folder / 'deploy.json'}")


def _state(settings: DeployCfg, outcome: Outcome) -> str:
    if outcome.result.failed is not None:
        return outcome.result.failed
    if settings.guard.at_exit == "hold":
        return "the arm is held where it is, with torque on"
    return "the torque is off"
