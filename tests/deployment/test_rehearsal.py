"""Two minutes of the robot, in simulated time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from robot_runs import SIMULATED

from residual_rl.config import TrainCfg, replace_fields
from residual_rl.deployment.arm_cfg import GuardCfg
from residual_rl.deployment.learning_cfg import RobotCfg
from residual_rl.deployment.robot_runner import RobotRunner
from residual_rl.deployment.training_arm import make_training_arm
from residual_rl.runs.logger import read_metrics
from residual_rl.runs.run_folder import RunFolder


@pytest.mark.slow
def test_robot_runner__two_minutes_with_a_person_are_enough_for_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base policy solves 42 % of the episodes. The person helps in the first ten."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "robot_rehearsal", raising=False)
    settings = {"num_envs": 1, "num_threads": 1, "total_timesteps": 3_636, "demo_share": 0.25}
    settings |= {"warmup_steps": 300, "actor_starts": 500}
    cfg = replace_fields(TrainCfg.default("so101-paper", "jacobian", "sac"), settings)
    robot = RobotCfg(**{**SIMULATED, "operator": "robot_rehearsal:person"})
    folder = RunFolder(tmp_path / "run")
    with folder.start({**cfg.to_dict(), "robot": {}}):
        runner = RobotRunner(cfg, robot, folder, arm=make_training_arm(cfg, robot, GuardCfg()))
        runner.start()
        summary = runner.learn()
    assert summary["robot_minutes"] == pytest.approx(2.0, abs=0.1)
    alone = [row for row in read_metrics(folder.metrics_file) if row["robot/intervened_share"] == 0.0]
    assert len(alone) >= 12
    assert sum(row["robot/success"] for row in alone[-12:]) >= 10
