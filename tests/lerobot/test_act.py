"""`imitate --algo act`: training through LeRobot, its data, resuming, and the resulting checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from lerobot_case import in_hardware, write_demos

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.base_policies.lerobot import LeRobotCfg
from residual_rl.cli.main import main
from residual_rl.demos.reader import Demonstrations
from residual_rl.errors import ConfigError
from residual_rl.factory import make_vec_env
from residual_rl.imitation.config import ImitateCfg
from residual_rl.lerobot import act
from residual_rl.lerobot.act import ActSize, ActTrainer
from residual_rl.runs.checkpoint import load
from residual_rl.runs.run_folder import RunFolder

pytestmark = pytest.mark.lerobot

FEW = {
    "batch_size": 8,
    "chunk_size": 4,
    "num_action_steps": 2,
    "warmup_steps": 1,
    "learning_rate": 1e-3,
    "torch_threads": 1,
}
NO_EVALUATION = {"eval_freq": 0, "log_freq": 2, "val_freq": 4, "save_freq": 4, "val_share": 0.25}


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demos(tmp_path_factory.mktemp("demos") / "demos.h5", episodes=4, steps=6)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny networks, with everything that draws random numbers."""
    monkeypatch.setitem(act.SIZES, "tiny", ActSize(16, 2, 32, 1, 1, use_vae=True, dropout=0.1))


def settings(**values: Any) -> ImitateCfg:
    return dataclasses.replace(ImitateCfg.default("act", "tiny"), **{**FEW, **NO_EVALUATION, **values})


def test_act_trainer__normalises_joints_in_degrees(demos: Path, tmp_path: Path) -> None:
    """Joint positions and targets as the arm reports them, normalised by LeRobot with the training episodes'
    statistics."""
    trainer = ActTrainer(settings(val_share=0.0), demos, RunFolder(tmp_path / "run"))
    with Demonstrations.open(demos) as stored:
        episodes = list(stored)
    joints = np.concatenate([in_hardware(demo.obs["joint_position"][:-1]) for demo in episodes])
    targets = np.concatenate([in_hardware(demo.obs["joint_target"][1:]) for demo in episodes])
    expected = (targets - targets.mean(0)) / (targets.std(0) + 1e-8)
    np.testing.assert_allclose(trainer.windows.actions, expected, atol=1e-3)
    np.testing.assert_allclose(
        trainer.windows.obs[:, :6], (joints - joints.mean(0)) / joints.std(0).clip(1e-3), atol=1e-3
    )
    state = np.concatenate([demo.obs["state"][:-1] for demo in episodes]).astype(np.float64)
    # The sheet lies still, and observations that hardly vary are ignored.
    flat = state.std(0) < 1e-3
    assert 0 < flat.sum() < 25
    scale = np.where(flat, 1e6, state.std(0))
    np.testing.assert_allclose(trainer.windows.obs[:, 6:], (state - state.mean(0)) / scale, atol=1e-3)
    trainer.close()


def test_act__resuming_is_bit_exact(demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight steps against eight with a crash in between; dropout and the VAE draw random numbers."""
    straight = act.train(settings(total_steps=8), demos, tmp_path / "straight")
    assert (straight["finished"], straight["steps"], straight["base_policy"], straight["model"]) == (
        True,
        8,
        "lerobot",
        "pretrained_model",
    )
    step = ActTrainer._step

    def crash(self: ActTrainer) -> None:
        if self.progress.step == 5:
            raise RuntimeError("power failure")
        step(self)

    monkeypatch.setattr(ActTrainer, "_step", crash)
    with pytest.raises(RuntimeError, match="power"):
        act.train(settings(total_steps=8), demos, tmp_path / "paused")
    monkeypatch.setattr(ActTrainer, "_step", step)
    torch.manual_seed(99)  # the global generator has no influence
    act.train(settings(total_steps=8), demos, tmp_path / "paused", resume=True)
    name = "checkpoints/step_000000008.safetensors"
    one, other = ((tmp_path / run / name) for run in ("straight", "paused"))
    ours, theirs = load(one, "checkpoint"), load(other, "checkpoint")
    assert _equal(ours["network"], theirs["network"])
    assert _equal(ours["ema"], theirs["ema"])
    for part in ("pretrained_model", "last"):
        files = sorted(file.name for file in (tmp_path / "straight" / part).iterdir())
        assert "model.safetensors" in files
        assert "policy_preprocessor.json" in files
        for file in files:
            assert (tmp_path / "straight" / part / file).read_bytes() == (
                tmp_path / "paused" / part / file
            ).read_bytes(), file


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_act__checkpoint_runs_as_a_base_policy(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line to a base policy, which is evaluated and predicts targets near the data."""
    flags = [
        "--algo",
        "act",
        "--preset",
        "tiny",
        "--total-steps",
        "3",
        "--batch-size",
        "8",
        "--eval-freq",
        "3",
        "--eval-episodes",
        "2",
    ]
    sizes = ["--chunk-size", "4", "--num-action-steps", "2", "--torch-threads", "1", "--eval-share", "1"]
    assert main(["imitate", str(demos), *flags, *sizes, "--out", str(tmp_path / "il")]) == 0
    assert "--base-policy lerobot --il-checkpoint" in capsys.readouterr().out
    assert (
        json.loads((tmp_path / "il" / "training_summary.json").read_text())["best_success_rate"] is not None
    )
    assert (tmp_path / "il" / "curves.png").is_file()
    env = make_vec_env("so101-paper", 2, num_threads=1, control_mode="joint_target")
    executor = make_base_policy("lerobot", LeRobotCfg(checkpoint=str(tmp_path / "il")), env)
    assert (executor.policy.chunk_size, executor.policy.num_action_steps) == (4, 2)
    obs, _ = env.reset(seed=2)
    action = executor.act(obs)
    with Demonstrations.open(demos) as stored:
        start = np.mean([demo.obs["joint_target"][1:].mean(0) for demo in stored], 0)
    commanded = env.actions_to_targets(action[:, None], obs)[:, 0]
    # After three gradient steps, predictions are near the mean of the data.
    assert (commanded - torch.from_numpy(start)).abs().max() < math.radians(20)


def test_act__training_halves_the_loss(demos: Path, tmp_path: Path) -> None:
    summary = act.train(
        settings(total_steps=150, val_freq=150, log_freq=10, save_freq=1000, learning_rate=3e-3),
        demos,
        tmp_path / "run",
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert summary["best_val_loss"] is not None


def test_act__resume_refuses_other_demonstrations(
    demos: Path, tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    act.train(settings(total_steps=4), demos, tmp_path / "run")
    others = write_demos(tmp_path / "others.h5", episodes=4, steps=7)
    text = fails("imitate", str(others), "--out", str(tmp_path / "run"), "--resume", "--total-steps", "8")
    assert "was trained on different demonstrations: use the same file" in text


def test_act__refuses_unsupported_settings(demos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_obs_steps must be 1, not 2"):
        act.train(settings(num_obs_steps=2), demos, tmp_path / "run")
    for name, value in {
        "init_from": "runs/x",
        "pad_obs_to": 32,
        "normalize_actions": False,
        "num_past_actions": 1,
    }.items():
        with pytest.raises(ConfigError, match=f"LeRobot's ACT does not support {name}: leave it out"):
            act.train(settings(**{name: value}), demos, tmp_path / "run")
    with pytest.raises(ConfigError, match="obs_keys must be 'state' only"):
        act.train(settings(obs_keys=("state", "goal")), demos, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"n_episodes is 5, but .* has 4 episodes"):
        act.train(settings(n_episodes=5), demos, tmp_path / "run")
    assert not (tmp_path / "run").exists()
