"""A residual trained with Stable-Baselines3 on a task's Gymnasium env, evaluated beside its base policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from tiny_runs import Fails

import residual_rl  # noqa: F401 (registers the Gymnasium ids)
from residual_rl.cli.main import main

SHORT = {"max_episode_steps": 20, "tolerance": 0.08, "success_hold_steps": 5}
SHORT_FLAGS = ["--max-episode-steps", "20", "--tolerance", "0.08", "--success-hold-steps", "5"]
EPISODES = 4
SEED = 77


def make(base_policy: str | None, scale: float | None = None) -> gymnasium.Env[Any, Any]:
    return gymnasium.make("residual_rl/SO101Paper-v0", base_policy=base_policy, residual_scale=scale, **SHORT)


def trained(path: Path, base_policy: str | None, scale: float | None = None) -> PPO:
    """A saved model, with an output layer large enough that its actions matter."""
    model = PPO("MlpPolicy", make(base_policy, scale), seed=1, device="cpu")
    with torch.no_grad():
        model.policy.action_net.weight.mul_(50.0)
    model.save(path)
    return model


@pytest.mark.parametrize(("base_policy", "scale"), [("zero", 0.7), ("jacobian", 0.3)])
def test_eval__sb3_residual_has_the_returns_of_its_own_library(
    base_policy: str, scale: float, tmp_path: Path
) -> None:
    model = trained(tmp_path / "best_model.zip", base_policy, scale)
    output = tmp_path / "eval.json"
    command = ["eval", "so101-paper", *SHORT_FLAGS, "--base-policy", base_policy, "--residual-policy"]
    command += [str(tmp_path / "best_model.zip"), "--trust-checkpoint", "--residual-scale", str(scale)]
    command += ["--n-episodes", str(EPISODES), "--first-seed", str(SEED), "--output", str(output)]
    assert main(command) == 0
    evaluation = json.loads(output.read_text())
    # the same episodes, stepped as Stable-Baselines3 does
    env = make(base_policy, scale)
    for seed in range(SEED, SEED + EPISODES):
        obs, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            action, _ = model.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            done = terminated or truncated
        found = evaluation["policies"]["residual"]["return"]["per_episode"][str(seed)]
        np.testing.assert_allclose(found, total, rtol=1e-4)
    # compared with its base
    assert set(evaluation["policies"]) == {"residual", "base"}
    assert evaluation["paired"]["residual-base"]["return"]["mean"] != 0.0
    assert evaluation["policies"]["residual"]["residual_magnitude"]["mean"] > 0.01
    assert evaluation["settings"]["residual_scale"] == scale
    assert evaluation["settings"]["residual_policy"].endswith("best_model.zip")


def test_eval__sb3_residual_needs_trust_and_a_base_policy_of_its_training(
    fails: Fails, tmp_path: Path
) -> None:
    path = tmp_path / "best_model.zip"
    trained(path, None)
    command = ("eval", "so101-paper", *SHORT_FLAGS, "--n-episodes", "1", "--residual-policy", path)
    assert "if you trust its source, add --trust-checkpoint" in fails(*command)
    # trained without a base policy: that is a base policy itself
    message = fails(*command, "--trust-checkpoint")
    assert message.startswith(
        f"{path} observes (25,); this env gives it (31,), state (25,) + base_action (6,)"
    )
    assert "does not exist" in fails(*command[:-1], tmp_path / "gone.zip", "--trust-checkpoint")


@pytest.mark.parametrize("base_policy", ["model", "jacobian"])
def test_eval__takes_trust_checkpoint_once(base_policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["eval", "so101-paper", "--base-policy", base_policy, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.count("--trust-checkpoint") >= 1


def test_eval__of_a_base_alone_still_refuses_flags_of_runs(fails: Fails) -> None:
    assert "--residual-scale needs a run folder" in fails("eval", "so101-paper", "--alpha", "0.3")
    assert "--save-video needs a run folder" in fails(
        "eval", "so101-paper", "--residual-policy", "x.zip", "--save-video"
    )
