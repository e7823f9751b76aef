"""LeRobot's own commands, unchanged, at tiny sizes: record, train, evaluate, and a residual on the result."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.scripts import lerobot_eval, lerobot_record, lerobot_train
from lerobot.utils.import_utils import register_third_party_plugins
from tiny_runs import CLI_TINY

from lerobot_policy_residual_rl.env import ENVIRONMENT_STATE_SIZE, SO101PaperEnvConfig
from residual_rl.cli.main import main
from residual_rl.factory import make_vec_env

pytestmark = [pytest.mark.lerobot, pytest.mark.slow, pytest.mark.usefixtures("opengl")]

EASY = "{tolerance: 1.0, success_hold_steps: 6}"
"""Settings of the task with which the sheet lies inside from the beginning: success after six steps."""
TINY_ACT = (
    "chunk_size=4 n_action_steps=2 dim_model=16 n_heads=2 dim_feedforward=32 n_encoder_layers=1 use_vae=false"
)


def run(module: object, *flags: str) -> None:
    """Run the command of a module of `lerobot.scripts`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module.__name__, *flags])  # type: ignore[attr-defined]
        module.main()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes, recorded by a policy."""
    root = tmp_path_factory.mktemp("round_trip") / "demos"
    run(
        lerobot_record,
        "--robot.type=so101_sim",
        "--robot.cameras={top: {width: 64, height: 64, fps: 30}}",
        f"--robot.settings={EASY}",
        "--robot.seed=5",
        "--teleop.type=so101_sim_policy",
        "--dataset.repo_id=local/sheet",
        f"--dataset.root={root}",
        "--dataset.single_task=Slide the sheet.",
        "--dataset.num_episodes=3",
        "--dataset.episode_time_s=600",
        "--dataset.reset_time_s=0",
        "--dataset.push_to_hub=false",
        "--play_sounds=false",
    )
    return root


@pytest.fixture(scope="module")
def act(demos: Path) -> Path:
    """An ACT policy, trained for two steps."""
    folder = demos.parent / "act"
    run(
        lerobot_train,
        "--dataset.repo_id=local/sheet",
        f"--dataset.root={demos}",
        "--dataset.video_backend=pyav",
        "--policy.type=act",
        "--policy.pretrained_backbone_weights=null",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        *(f"--policy.{setting}" for setting in TINY_ACT.split()),
        "--batch_size=2",
        "--num_workers=0",
        "--steps=2",
        "--save_freq=2",
        f"--output_dir={folder}",
    )
    return folder / "checkpoints" / "last" / "pretrained_model"


def test_register_third_party_plugins__finds_the_plugin_by_its_name() -> None:
    names = {found.metadata["Name"] for found in importlib.metadata.distributions()}
    assert "lerobot_policy_residual_rl" in names
    register_third_party_plugins()


def test_lerobot_record__each_episode_begins_from_its_seed_and_ends_with_success(demos: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/sheet", root=demos, video_backend="pyav")
    assert dataset.num_episodes == 3
    assert dataset.num_frames == 3 * 6
    assert dataset.meta.robot_type == "so101_sim"
    assert set(dataset.meta.features) >= {"observation.state", "observation.images.top", "action"}
    states = torch.tensor(np.array(dataset.hf_dataset["observation.state"]))
    assert torch.equal(states[0], states[6])  # all begin at the home pose
    actions = torch.tensor(np.array(dataset.hf_dataset["action"]))
    assert not torch.equal(actions[:6], actions[6:12])  # towards different sheets


def test_lerobot_eval__runs_an_act_of_lerobot_train_on_the_env(act: Path, tmp_path: Path) -> None:
    run(
        lerobot_eval,
        f"--policy.path={act}",
        "--policy.device=cpu",
        "--env.type=so101_paper",
        "--env.cameras=[top]",
        "--env.observation_height=64",
        "--env.observation_width=64",
        f"--env.settings={EASY}",
        "--eval.n_episodes=2",
        "--eval.batch_size=2",
        "--eval.use_async_envs=false",
        f"--output_dir={tmp_path}",
    )
    info = json.loads((tmp_path / "eval_info.json").read_text(encoding="utf-8"))
    assert info["overall"]["pc_success"] == 100.0
    assert info["per_task"][0]["metrics"]["successes"] == [True, True]
    assert list(info["per_group"]) == ["so101_paper"]


def test_base_policy__lerobot_takes_the_act_for_a_residual(act: Path, tmp_path: Path) -> None:
    flags = ["--base-policy", "lerobot", "--il-checkpoint", str(act), "--force", "--learner", "ppo"]
    images = ["--obs-mode", "rgb+state", "--obs-cameras", "top", "--image-size", "64", "64"]
    short = ["--max-episode-steps", "4", "--total-timesteps", "16", "--output-dir", str(tmp_path / "run")]
    assert main(["train", "so101-paper", *CLI_TINY, *flags, *images, *short]) == 0


def test_environment_state_size__is_that_of_the_task() -> None:
    env = make_vec_env("so101-paper", 1, num_threads=1)
    shapes = env.single_observation_space.spaces  # type: ignore[attr-defined]
    size = sum(shapes[name].shape[0] for name in env.task.environment_state)  # type: ignore[attr-defined]
    assert size == ENVIRONMENT_STATE_SIZE
    features = SO101PaperEnvConfig(cameras=["top"], observation_height=48).features
    assert features["environment_state"].shape == (ENVIRONMENT_STATE_SIZE,)
    assert features["pixels/top"].shape == (48, 128, 3)
