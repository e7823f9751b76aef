"""LeRobot's own commands on an exported policy, at tiny sizes: evaluate it, and record with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from lerobot.scripts import lerobot_eval
from tiny_runs import CLI_TINY

from residual_rl.cli.main import main

pytestmark = [pytest.mark.lerobot, pytest.mark.slow, pytest.mark.usefixtures("opengl")]

EASY = "{tolerance: 1.0, success_hold_steps: 6}"
"""Settings of the task with which the sheet lies inside from the beginning: success after six steps."""


def run(module: object, *flags: str) -> None:
    """Run the command of a module of `lerobot.scripts`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module.__name__, *flags])  # type: ignore[attr-defined]
        module.main()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was exported as a LeRobot policy."""
    folder = tmp_path_factory.mktemp("exported")
    easy = ["--tolerance", "1.0", "--success-hold-steps", "6", "--total-timesteps", "64"]
    assert main(["train", "so101-paper", *CLI_TINY, *easy, "--output-dir", str(folder / "run")]) == 0
    assert (
        main(["export", str(folder / "run"), "--model", "final", "--output-dir", str(folder / "policy")]) == 0
    )
    return folder / "policy"


def test_lerobot_eval__runs_an_exported_policy(policy: Path, tmp_path: Path) -> None:
    run(
        lerobot_eval,
        f"--policy.path={policy}",
        "--env.type=so101_paper",
        "--env.cameras=[]",
        f"--env.settings={EASY}",
        "--env.render_height=24",
        "--env.render_width=32",
        "--eval.n_episodes=4",
        "--eval.batch_size=2",
        "--eval.use_async_envs=false",
        f"--output_dir={tmp_path}",
    )
    info = json.loads((tmp_path / "eval_info.json").read_text(encoding="utf-8"))
    assert info["per_task"][0]["metrics"]["successes"] == [True] * 4


def test_lerobot_record__records_with_an_exported_policy(policy: Path, tmp_path: Path) -> None:
    """The recording of an episode ends with success, after six steps."""
    lerobot_record = pytest.importorskip("lerobot.scripts.lerobot_record")
    if not hasattr(lerobot_record.RecordConfig, "policy"):
        pytest.skip("from 0.6 on, LeRobot runs policies with lerobot-rollout")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    run(
        lerobot_record,
        f"--policy.path={policy}",
        "--robot.type=so101_sim",
        f"--robot.settings={EASY}",
        "--dataset.repo_id=local/eval_sheet",
        f"--dataset.root={tmp_path / 'data'}",
        "--dataset.single_task=Slide the sheet.",
        "--dataset.num_episodes=2",
        "--dataset.episode_time_s=600",
        "--dataset.reset_time_s=0",
        "--dataset.push_to_hub=false",
        "--play_sounds=false",
    )
    dataset = LeRobotDataset("local/eval_sheet", root=tmp_path / "data")
    assert (dataset.num_episodes, dataset.num_frames) == (2, 12)
