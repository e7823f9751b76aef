"""LeRobot's own flags make the robot, and `deploy` runs on the plugin's simulated one."""

from __future__ import annotations

import json
import sys

import pytest
from paths import ROOT

from residual_rl.cli.main import main
from residual_rl.errors import ConfigError
from residual_rl.lerobot.arm import make_lerobot_arm
from residual_rl.tasks.so101_paper.hardware_units import HARDWARE

pytestmark = pytest.mark.lerobot

FOLLOWER = ["--robot.type=so101_follower", "--robot.port=/dev/null", "--robot.id", "tested"]


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The plugin as an installed distribution."""
    info = tmp_path / "site" / "lerobot_policy_residual_rl-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lerobot_policy_residual_rl\nVersion: 0\n")
    monkeypatch.syspath_prepend(str(ROOT / "plugins" / "lerobot_policy_residual_rl" / "src"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--robot.type=so101_folower"], "unknown robot type 'so101_folower'.*so101_follower"),
        (["--robot.type", "so101_follower"], "port"),
        ([*FOLLOWER, "--robot.colour=red"], "colour"),
    ],
)
def test_make_lerobot_arm__wrong_flags_are_one_clear_line(words, message):
    with pytest.raises(ConfigError, match=message):
        make_lerobot_arm(words, HARDWARE, "hold")


def test_make_lerobot_arm__a_missing_package_of_the_motors_is_named(monkeypatch):
    def make(config):
        raise ModuleNotFoundError("No module named 'scservo_sdk'", name="scservo_sdk")

    monkeypatch.setattr("lerobot.robots.make_robot_from_config", make)
    with pytest.raises(ConfigError, match="scservo_sdk'; pip install feetech-servo-sdk"):
        make_lerobot_arm(FOLLOWER, HARDWARE, "hold")


@pytest.mark.parametrize(("at_exit", "disables"), [("hold", False), ("torque-off", True)])
def test_make_lerobot_arm__disconnecting_leaves_the_torque_as_at_exit_says(at_exit, disables, tmp_path):
    pytest.importorskip("scservo_sdk", reason="the motors' library is not installed: lerobot[feetech]")
    arm = make_lerobot_arm([*FOLLOWER, f"--robot.calibration_dir={tmp_path}"], HARDWARE, at_exit)
    assert arm.robot.config.disable_torque_on_disconnect is disables


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("extra", [[], ["--dry-run", "--seconds", "1"]])
def test_deploy__runs_on_a_robot_of_lerobot(tmp_path, extra):
    robot = ["--robot.type", "so101_sim", "--robot.id=tested", f"--robot.calibration_dir={tmp_path}"]
    words = ["--task", "so101-paper", *robot, *extra, "--answer-timeout", "5", "--max-latency", "5"]
    assert main(["deploy", "jacobian", *words, "--output-dir", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "deploy.json").read_text())
    assert record["stop_failed"] is None
    if not extra:
        assert [episode["success_once"] for episode in record["episodes"]] == [1.0]
    assert "lerobot_policy_residual_rl" in sys.modules
