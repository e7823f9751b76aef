"""Settings of ManiSkill tasks, and errors if ManiSkill or a GPU is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch

from residual_rl.cli.train import parse
from residual_rl.config import TrainCfg
from residual_rl.errors import ConfigError
from residual_rl.tasks.maniskill.config import ManiSkillCfg
from residual_rl.tasks.maniskill.factory import make_env_cfg
from residual_rl.tasks.maniskill.ppo_defaults import PUBLISHED, train_overrides

HINT = "ManiSkill is not available; install it with `pip install residual-rl[maniskill]`"


@pytest.fixture
def no_maniskill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ManiSkill appear not installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mani_skill" else real(name, *rest)
    )


@pytest.mark.usefixtures("no_maniskill")
def test_require_maniskill__commands_print_the_install_line(tmp_path: Path, fails: tiny_runs.Fails) -> None:
    assert HINT in fails("train", "maniskill", "--env-id", "PushCube-v1", "--output-dir", tmp_path / "run")
    assert HINT in fails("eval", "maniskill", "--base-policy", "zero", "--n-episodes", "2")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("settings", "device"), [({"sim_backend": "physx_cuda"}, "cpu"), ({}, "cuda")])
def test_make_env_cfg__gpu_simulation_without_a_gpu_suggests_physx_cpu(
    settings: dict[str, Any], device: str
) -> None:
    with pytest.raises(
        ConfigError, match=r"needs an NVIDIA GPU, and torch finds none; choose --sim-backend physx_cpu"
    ):
        make_env_cfg(ManiSkillCfg(**settings), device)


def test_make_env_cfg__unknown_device_is_named_in_the_error() -> None:
    with pytest.raises(ConfigError, match="sim_device must be cpu, cuda or cuda:N, not 'cuda:x'"):
        make_env_cfg(ManiSkillCfg(), "cuda:x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"obs_mode": "depth"}, "obs_mode must be one of state, rgb, rgb.state, not 'depth'"),
        ({"max_episode_steps": 0}, "max_episode_steps must be at least 1, not 0"),
        ({"num_workers": -1}, "num_workers must be from 0 to 1024, not -1"),
        ({"image_size": (0, 64)}, r"image_size must be from 1 to 16384 each, not \(0, 64\)"),
    ],
)
def test_maniskill_cfg__invalid_value_names_the_field(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ManiSkillCfg(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_make_env_cfg__renders_only_if_images_are_observed() -> None:
    assert make_env_cfg(ManiSkillCfg()).render_backend == "none"
    assert make_env_cfg(ManiSkillCfg(obs_mode="rgb")).render_backend == "cpu"
    assert make_env_cfg(ManiSkillCfg(obs_mode="rgb", render_backend="gpu")).render_backend == "gpu"
    assert make_env_cfg(ManiSkillCfg()).sim_backend == "physx_cpu"


def test_train_overrides__match_the_published_settings() -> None:
    assert train_overrides("PushCube-v1")["num_steps"] == 20
    assert train_overrides("StackCube-v1")["num_steps"] == 50  # not listed: as for PickCube-v1
    assert train_overrides("PushT-v1")["gamma"] == 0.99
    assert PUBLISHED["TriFingerRotateCubeLevel4-v1"].num_steps == 250


def test_train_overrides__are_the_defaults_of_train_for_the_chosen_env_id() -> None:
    """Includes bootstrapping at every episode end: rewards are positive in each step, so that success, which
    ends an episode, would otherwise be a loss."""
    push, unnamed = TrainCfg.default("maniskill", variant="PushCube-v1"), TrainCfg.default("maniskill")
    assert (push.learner.num_steps, push.learner.gamma, push.learner.bootstrap_at_done) == (20, 0.8, "always")
    assert unnamed.learner == push.learner  # it is the default task
    named = parse("maniskill", ["--env-id", "PushT-v1"]).cfg
    assert (named.learner.num_steps, named.learner.gamma, named.run.eval_episodes) == (100, 0.99, 16)
    assert parse("maniskill", ["--env-id", "PushT-v1", "--num-steps", "7"]).cfg.learner.num_steps == 7
