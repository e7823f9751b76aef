"""Exported policies in LeRobot's own loop: the episodes of `lerobot-eval` are those of `residual-rl eval`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import export_case
import il_case
import lerobot_case
import numpy as np
import pytest
import torch
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts.lerobot_eval import eval_policy
from plugin_case import load
from tiny_runs import slow

from lerobot_policy_residual_rl.robot import KEYS, SO101Sim, SO101SimConfig
from residual_rl.deployment.lerobot_folder import changed_settings, export
from residual_rl.evaluation.evaluate import evaluate
from residual_rl.exported_policy import find_policy, load_policy
from residual_rl.factory import make_residual_env
from residual_rl.lerobot.env import make_envs

try:
    from lerobot.common.control_utils import predict_action
except ModuleNotFoundError:  # before 0.6
    from lerobot.utils.control_utils import predict_action

pytestmark = pytest.mark.lerobot

FIRST, NUM = 1000, 6
EPISODES: dict[str, Any] = {"tolerance": 0.05, "max_episode_steps": 30, "residual_penalty": 0.0}
"""Short ones, of which some succeed."""


def ours(model: Path) -> dict[str, list[float]]:
    """Success and return of each episode, of the run."""
    exported = load_policy(model / "policy.safetensors")
    env = make_residual_env(exported.cfg, NUM)
    env.residual_scale = exported.residual_scale
    policy = exported.actor(env.observation_space, env.action_dim, env.device)
    episodes = evaluate(env, policy, range(FIRST, FIRST + NUM))
    env.close()
    return {name: episodes[name].tolist() for name in ("success_once", "return")}


def lerobots(folder: Path, model: Path, batch_size: int) -> dict[str, list[float]]:
    """The same of the exported policy, in LeRobot's env and evaluation."""
    settings = changed_settings(load_policy(model / "policy.safetensors").cfg)
    env = make_envs(batch_size, task="so101-paper", cameras=(), settings=settings)["so101_paper"][0]
    policy, preprocessor, postprocessor = load(folder)
    nothing: Any = PolicyProcessorPipeline(steps=[])
    info = eval_policy(
        env, policy, nothing, nothing, preprocessor, postprocessor, n_episodes=NUM, start_seed=FIRST
    )
    env.close()
    found = info["per_episode"]
    assert [episode["seed"] for episode in found] == list(range(FIRST, FIRST + NUM))
    return {
        "success_once": [float(episode["success"]) for episode in found],
        "return": [episode["sum_reward"] for episode in found],
    }


@pytest.mark.parametrize("base_policy", ["jacobian", "lerobot", *slow("il")])
def test_exported_policy__solves_the_same_episodes_in_lerobot(base_policy: str, tmp_path: Path) -> None:
    """In batches of two sizes, neither of which is that of the run's evaluation."""
    checkpoint = {}
    if base_policy == "lerobot":
        checkpoint = {"checkpoint": str(lerobot_case.make_checkpoint(tmp_path / "act"))}
    if base_policy == "il":
        (tmp_path / "il").mkdir()
        il_case.model().save(tmp_path / "il" / "model.safetensors")
        checkpoint = {"checkpoint": str(tmp_path / "il")}
    model = export_case.make_policy(tmp_path / "model", base_policy, **EPISODES, **checkpoint)
    export(find_policy(model), tmp_path / "policy", "copy")
    expected = ours(model)
    assert 0.0 < sum(expected["success_once"]) < NUM
    for batch_size in (2, 3):
        got = lerobots(tmp_path / "policy", model, batch_size)
        assert got["success_once"] == expected["success_once"]
        # LeRobot adds the reward of the step after an episode that ends early
        failed = [i for i, success in enumerate(expected["success_once"]) if not success]
        for i in failed:
            assert got["return"][i] == pytest.approx(expected["return"][i], abs=1e-4)


# --- lerobot-record -----------------------------------------------------------------------------------------


@pytest.fixture
def robot(tmp_path: Path) -> Iterator[SO101Sim]:
    """The simulated arm, moving as fast as possible, in an episode that the base policy solves."""
    made = SO101Sim(SO101SimConfig(id="test", calibration_dir=tmp_path, settings={"max_episode_steps": 400}))
    made.connect()
    yield made
    made.disconnect()


def test_exported_policy__solves_the_task_on_the_simulated_arm(robot: SO101Sim, tmp_path: Path) -> None:
    """The loop of `lerobot-record`: the robot gives joints, and the simulator the pose of the sheet."""
    model = export_case.make_policy(tmp_path / "model", max_episode_steps=400, tolerance=0.02)
    export(find_policy(model), tmp_path / "policy", "copy")
    policy, preprocessor, postprocessor = load(tmp_path / "policy")
    for seed in (1001, 1002):
        robot.reset(seed)
        policy.reset()
        steps = 0
        while not robot.success() and steps < 400:
            seen = robot.get_observation()
            joints = np.array([seen[name] for name in KEYS], np.float32)
            observation = {"observation.state": joints}
            device = torch.device("cpu")
            action = predict_action(observation, policy, device, preprocessor, postprocessor, False, "slide")
            robot.send_action(dict(zip(KEYS, action[0].tolist(), strict=True)))
            steps += 1
        assert robot.success(), seed
