"""Exported policies in a robot's units: equal to the run, one state per row, poses, and malformed inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import export_case
import fakes
import il_case
import numpy as np
import pytest
import torch

from residual_rl.config import TrainCfg
from residual_rl.deployment.lerobot_folder import export, read
from residual_rl.deployment.robot_policy import RobotPolicy, make_env
from residual_rl.errors import ArmError, ConfigError, NonFiniteError
from residual_rl.exported_policy import find_policy
from residual_rl.registry import TASKS
from residual_rl.robots.arm_driver import Pose
from residual_rl.tasks.so101_paper.hardware_units import HARDWARE
from residual_rl.tasks.so101_paper.robot import HOME

SEEDS = [31, 32, 33]
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jacobian": ("jacobian", "ppo", {}),
    "zero, absolute targets": ("zero", "ppo", {"control_mode": "joint_target"}),
    "hybrid": (
        "hybrid",
        "ppo",
        {"policies": ("il", "zero", "jacobian"), "settings": ("0.checkpoint={il}",), "mode": "ensemble"},
    ),
    "il with a gate": ("il", "gated-sac", {"checkpoint": "{il}"}),
}


def exported(folder: Path, base_policy: str, learner: str, settings: dict[str, Any]) -> tuple[Path, Path]:
    """The model and the folder that was exported from it."""
    (folder / "il").mkdir()
    il_case.model().save(folder / "il" / "model.safetensors")

    def filled(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(filled, value))
        return value.format(il=folder / "il") if isinstance(value, str) else value

    named = {name: filled(value) for name, value in settings.items()}
    model = export_case.make_policy(folder / "model", base_policy, learner, **named)
    export(find_policy(model), folder / "policy", "copy")
    return model, folder / "policy"


@pytest.fixture
def policy(tmp_path: Path) -> RobotPolicy:
    return read(exported(tmp_path, "jacobian", "ppo", {})[1])


@pytest.mark.parametrize("case", CASES)
def test_robot_policy_act__equals_the_run_bit_for_bit(case: str, tmp_path: Path) -> None:
    model, folder = exported(tmp_path, *CASES[case])
    run, policy = export_case.Run(model, SEEDS), read(folder)
    for _ in range(8):
        got = policy.act(run.joints, run.environment)
        _, expected = run.step()
        assert got.dtype == torch.float64
        assert torch.equal(got, expected)


def test_robot_policy_act__a_row_does_not_depend_on_the_others(tmp_path: Path) -> None:
    model, folder = exported(tmp_path, *CASES["il with a gate"])
    run, together = export_case.Run(model, SEEDS), read(folder)
    alone = [read(folder) for _ in SEEDS]
    for _ in range(6):
        got = together.act(run.joints, run.environment)
        for row, policy in enumerate(alone):
            rows = slice(row, row + 1)
            assert torch.equal(policy.act(run.joints[rows], run.environment[rows])[0], got[row])
        run.step()


def test_robot_policy_reset__starts_all_rows_anew(tmp_path: Path) -> None:
    model, folder = exported(tmp_path, *CASES["il with a gate"])
    run, policy = export_case.Run(model, SEEDS), read(folder)
    seen = run.joints, run.environment
    first = policy.act(*seen)
    assert not torch.equal(policy.act(*seen), first)  # the second action of the chunk
    policy.reset()
    assert torch.equal(policy.act(*seen), first)


# --- an arm, which measures its joints only -----------------------------------------------------------------


def pose(x: float = 0.3, time: float = 0.0) -> Pose:
    return Pose(np.array([x, 0.05, 0.001]), np.array([1.0, 0.0, 0.0, 0.0]), time)


def home() -> torch.Tensor:
    """The home position [1, 6] in degrees, gripper 0 to 100; its gripper is closed to the limit."""
    return HARDWARE.to_hardware(torch.tensor([HOME]))


def test_robot_policy_act__follows_the_run_from_joints_and_a_pose_alone(tmp_path: Path) -> None:
    """Velocities are finite differences, so that only a policy without them is equal: to float32's last
    bits of the degrees."""
    learner = {"obs_keys": ("joint_position", "sheet_pose", "goal", "base_action")}
    model, folder = exported(tmp_path, "jacobian", "ppo", learner)
    run, policy = export_case.Run(model, [31]), read(folder)
    times = iter(range(100))

    def sheet() -> Pose:
        values = run.env.obs["sheet_pose"][0].double().numpy()
        return Pose(values[:3], values[3:], float(next(times)))

    policy.pose_source = sheet
    for _ in range(8):
        got = policy.act(run.joints)
        _, expected = run.step()
        assert (got - expected).abs().max() < 1e-4


def test_robot_policy_act__adds_no_noise_to_what_an_arm_measures(tmp_path: Path) -> None:
    targets = []
    for name, noise in {"plain": {}, "noisy": {"position_noise": 0.02, "angle_noise": 0.1}}.items():
        (tmp_path / name).mkdir()
        policy = read(exported(tmp_path / name, "jacobian", "ppo", noise)[1])
        policy.pose_source = pose
        targets.append(policy.act(home()))
    assert torch.equal(*targets)


def test_robot_policy_act__without_a_pose_source_is_an_error(policy: RobotPolicy) -> None:
    assert policy.needs_pose == ("state", "sheet_pose", "goal")
    with pytest.raises(
        ConfigError, match=r"observes state, sheet_pose, goal, .* pose of the sheet.*pose source"
    ):
        policy.act(home())


def test_robot_policy_act__needs_no_pose_source_where_no_pose_is_read(tmp_path: Path) -> None:
    settings = {"obs_keys": ("joint_position", "joint_velocity", "ee_position", "base_action")}
    policy = read(exported(tmp_path, "zero", "ppo", settings)[1])
    assert policy.needs_pose == ()
    assert policy.act(home()).shape == (1, 6)


def test_robot_policy_act__a_pose_that_stays_away_is_an_error(
    policy: RobotPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 50.0
    monkeypatch.setattr("residual_rl.deployment.measured_arms.time.monotonic", lambda: now)
    policy.pose_source = lambda: None
    with pytest.raises(ArmError, match="the pose source does not see the sheet"):
        policy.act(home())
    policy.pose_source = pose  # always the same one, as of a camera that hangs
    policy.reset()
    policy.act(home())
    now += 0.4
    policy.act(home())
    now += 0.2
    with pytest.raises(ArmError, match=r"no new pose of the sheet for 0.5 s"):
        policy.act(home())


def test_robot_policy_act__a_pose_source_serves_one_robot(policy: RobotPolicy) -> None:
    policy.pose_source = pose
    with pytest.raises(ConfigError, match="a pose source serves one robot, not 2"):
        policy.act(home().expand(2, -1))


@pytest.mark.parametrize(
    ("joints", "environment", "error", "message"),
    [
        (torch.zeros(2, 5), None, ConfigError, r"shape \(2, 5\); expected \(robots, 6\): shoulder_pan"),
        (torch.zeros(6), None, ConfigError, r"shape \(6,\)"),
        (torch.full((1, 6), torch.nan), None, NonFiniteError, "the measured joint positions is not finite"),
        (
            torch.zeros(1, 6),
            torch.zeros(1, 25),
            ConfigError,
            r"expected \(1, 31\): joint_position 6, .*joint_target 6",
        ),
        (torch.zeros(1, 6), torch.full((1, 31), torch.inf), NonFiniteError, "the environment's state is not"),
    ],
)
def test_robot_policy_act__malformed_observations_are_errors(
    policy: RobotPolicy, joints: Any, environment: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        policy.act(joints, environment)


def test_robot_policy_act__checks_the_images(tmp_path: Path, policy: RobotPolicy) -> None:
    policy.cameras = {"joint_target": (6,)}  # a stand-in, since images would need OpenGL
    environment = torch.zeros(1, 31)
    with pytest.raises(ConfigError, match="reads the camera 'joint_target'; the cameras of the robot: none"):
        policy.act(home(), environment)
    with pytest.raises(ConfigError, match=r"gives torch.float32 \(1, 6\); expected torch.uint8 \(1, 6\)"):
        policy.act(home(), environment, {"joint_target": torch.zeros(1, 6)})


def test_make_env__a_task_without_a_robots_units_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS._specs, "point", fakes.POINT_TASK)
    with pytest.raises(ConfigError, match="task 'point' has no units of a robot"):
        make_env(TrainCfg.default("point", "zero"), 1)
