"""Failures at run time: failing base policies, NaN, missing OpenGL, full disks. One clear line, and no lost
data."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import FAILING_TINY as TINY
from tiny_runs import Fails
from torch import Tensor

from residual_rl.cli.main import main
from residual_rl.envs.mujoco import renderer as rendering
from residual_rl.envs.mujoco.physics import MujocoPhysics
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.factory import make_vec_env
from residual_rl.learners.common.optimizer import FlatAdam
from residual_rl.registry import BASE_POLICIES, BasePolicySpec, register_base_policy
from residual_rl.runs import checkpoint
from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.runs.logger import Logger
from residual_rl.tasks.so101_paper.task import SO101Paper
from residual_rl.types import BasePolicy, Obs
from residual_rl.utils.files import WriteError
from residual_rl.utils.seeding import TRAINING_EVAL_SEED

# --- base policies that fail in the middle of a run ---------------------------------------------------------


class Failing(BasePolicy):
    """Returns zeros up to the 24th step. It is queried at the reset, after each step, and for the final
    observations of step 20."""

    inputs = {"state": (25,)}  # noqa: RUF012
    mode = "fine"

    def __init__(self) -> None:
        self.calls = 0

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Any:
        self.calls += 1
        zero = torch.zeros(len(env_ids), 1, 6)
        if self.calls <= 26 or self.mode == "fine":
            return zero
        if self.mode == "raises":
            raise ValueError("the gripper\nis on fire")
        return {
            "shape": zero[:, 0],
            "chunk": zero.expand(-1, 2, -1),
            "list": zero.tolist(),
            "none": None,
            "nan": zero / 0,
        }[self.mode]


def make_failing(cfg: None, env: VecEnv) -> Failing:
    return Failing()


@pytest.fixture
def failing() -> Iterator[type[Failing]]:
    register_base_policy(BasePolicySpec("failing", "fails", f"{__name__}:make_failing"))
    yield Failing
    del BASE_POLICIES._specs["failing"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "code", "message"),
    [
        ("raises", 2, "base policy 'failing' failed: ValueError: the gripper is on fire"),
        ("shape", 2, "base policy 'failing' gave (4, 6); expected a tensor of shape (4, 1, 6)"),
        ("chunk", 2, "base policy 'failing' gave (4, 2, 6); expected a tensor of shape (4, 1, 6)"),
        ("list", 2, "base policy 'failing' gave list; expected a tensor of shape (4, 1, 6)"),
        ("none", 2, "base policy 'failing' gave NoneType; expected a tensor of shape (4, 1, 6)"),
        ("nan", 3, "the base action of base policy 'failing' is not finite in env(s) [0, 1, 2, 3]"),
    ],
)
def test_train__failing_base_policy_is_named_and_the_checkpoint_resumes(
    mode: str,
    code: int,
    message: str,
    failing: type[Failing],
    fails: Fails,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failing, "mode", mode)
    path = tmp_path / "run"
    command = (
        "train",
        "so101-paper",
        *TINY,
        "--base-policy",
        "failing",
        "--total-timesteps",
        "160",
        "--output-dir",
        path,
    )
    printed = fails(*command, code=code)
    assert printed.startswith(message)
    latest = CheckpointFolder(path / "checkpoints").latest()
    assert latest is not None
    assert latest[0] == 96
    dump = path / "nonfinite_dump.safetensors"
    assert dump.exists() == (mode == "nan")
    if mode == "nan":
        assert str(dump) in printed
        assert checkpoint.load(dump, "dump")["obs/state"].shape == (4, 25)
    monkeypatch.setattr(failing, "mode", "fine")
    assert main(["train", "--resume", str(path)]) == 0
    assert json.loads((path / "training_summary.json").read_text())["steps"] == 160


def test_train__missing_observation_of_the_base_policy_is_named(
    failing: type[Failing], fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", "so101-paper", *TINY, "--base-policy", "failing", "--output-dir", tmp_path / "run")
    monkeypatch.setattr(failing, "inputs", {"gripper_camera": (8,)})
    assert "base policy 'failing' needs the observation 'gripper_camera' (8,); the env has " in fails(
        *command
    )
    monkeypatch.setattr(failing, "inputs", {"state": (26,)})
    assert "base policy 'failing' needs 'state' of shape (26,); the env gives (25,)" in fails(*command)
    assert list(tmp_path.iterdir()) == []


# --- NaN ----------------------------------------------------------------------------------------------------


def nan_in_the_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the position of joint 0 of env 2 NaN from the 12th training step on; training has four envs."""
    step, calls = MujocoPhysics.step, [0]

    def spoiled(physics: MujocoPhysics, *arguments: Any) -> None:
        calls[0] += physics.num_envs == 4
        if physics.num_envs == 4 and calls[0] >= 12:
            physics.batch.bind("qpos")[2, 0] = float("nan")
        step(physics, *arguments)

    monkeypatch.setattr(MujocoPhysics, "step", spoiled)


def nan_in_the_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    terms, calls = SO101Paper.reward_terms, [0]

    def spoiled(task: SO101Paper, q: Any) -> Any:
        found = terms(task, q)
        calls[0] += len(found["step"]) == 4
        if calls[0] >= 12 and len(found["step"]) == 4:
            found["yaw"][2] = float("nan")
        return found

    monkeypatch.setattr(SO101Paper, "reward_terms", spoiled)


def nan_in_the_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    observe, calls = SO101Paper.observe, [0]

    def spoiled(task: SO101Paper, q: Any) -> Any:
        obs = observe(task, q)
        calls[0] += len(obs["goal"]) == 4
        if calls[0] >= 12 and len(obs["goal"]) == 4:
            obs["goal"][2, 1] = float("inf")
        return obs

    monkeypatch.setattr(SO101Paper, "observe", spoiled)


def nan_in_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = FlatAdam.step, [0]

    def spoiled(optimizer: FlatAdam, gradients: Any) -> None:
        calls[0] += 1
        if calls[0] == 6:  # in the second iteration, of two epochs with two minibatches
            gradients = [gradients[0] * float("nan"), *gradients[1:]]
        step(optimizer, gradients)

    monkeypatch.setattr(FlatAdam, "step", spoiled)


CONTEXT = ["state_before", "action", "seed", "step"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message", "dumped"),
    [
        (
            nan_in_the_simulation,
            "the simulation diverged (NaN or huge values; MuJoCo warns BADQPOS) in env(s) [2]",
            CONTEXT,
        ),
        (nan_in_the_reward, "reward is not finite in env(s) [2]", CONTEXT),
        (nan_in_the_observation, "goal is not finite in env(s) [2]", CONTEXT),
        (nan_in_a_gradient, "the gradient of ", []),
    ],
)
def test_train__nan_is_named_and_dumped_and_reaches_no_checkpoint(
    spoil: Callable[[pytest.MonkeyPatch], None],
    message: str,
    dumped: list[str],
    fails: Fails,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a MUJOCO_LOG.TXT
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        spoil(patch)
        printed = fails(
            "train", "so101-paper", *TINY, "--total-timesteps", "96", "--output-dir", path, code=3
        )
    assert printed.startswith(message)
    assert printed.endswith(f"the preceding states are in {path}/nonfinite_dump.safetensors")
    dump = checkpoint.load(path / "nonfinite_dump.safetensors", "dump")
    assert set(dumped) <= set(dump)
    assert dump["env"] == "training"
    if dumped:
        steps = 10 if spoil is nan_in_the_observation else 11  # the reset observes as well
        assert dump["step"].tolist() == [steps] * 4
        assert dump["state_before"]["state"].shape[0] == dump["action"].shape[0] == 4
    assert dump["last_obs"]["state"].shape == (4, 25)
    assert torch.isfinite(dump["last_obs"]["state"]).all()  # the observation before the step
    assert "policy" in dump["learner"]
    assert CheckpointFolder(path / "checkpoints").latest()[0] == 32  # type: ignore[index]
    assert main(["train", "--resume", str(path)]) == 0


def test_train__nan_in_an_evaluation_is_dumped_with_its_own_states(
    fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation has two envs, training four."""
    monkeypatch.chdir(tmp_path)
    step, calls = MujocoPhysics.step, [0]

    def spoiled(physics: MujocoPhysics, *arguments: Any) -> None:
        calls[0] += physics.num_envs == 2
        if physics.num_envs == 2 and calls[0] == 3:
            physics.batch.bind("qpos")[1, 0] = float("nan")
        step(physics, *arguments)

    monkeypatch.setattr(MujocoPhysics, "step", spoiled)
    path = tmp_path / "run"
    assert "in env(s) [1]" in fails(
        "train", "so101-paper", *TINY, "--total-timesteps", "96", "--output-dir", path, code=3
    )
    dump = checkpoint.load(path / "nonfinite_dump.safetensors", "dump")
    assert dump["env"] == "evaluation"
    assert dump["last_obs"]["state"].shape == (2, 25)
    assert dump["state_before"]["state"].shape[0] == 2
    assert dump["seed"].tolist() == [TRAINING_EVAL_SEED, TRAINING_EVAL_SEED + 1]
    assert dump["step"].tolist() == [2, 2]


def test_eval__nan_is_named(fails: Fails, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    nan_in_the_simulation(monkeypatch)
    assert "the simulation diverged" in fails("eval", run, "--n-episodes", "4", code=3)
    assert not (run / "eval.json").exists()


# --- missing libraries and full disks -----------------------------------------------------------------------


@pytest.fixture
def no_gl(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise MissingDependencyError("OpenGL", "install it with `apt-get install libosmesa6`")

    monkeypatch.setattr(rendering, "gl_context_class", missing)


@pytest.mark.slow
@pytest.mark.usefixtures("no_gl")
def test_eval__without_opengl_lacks_only_the_video(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--n-episodes", "2", "--compare-base", "--save-video"]) == 0
    captured = capfd.readouterr()
    lines = [line for line in (captured.out + captured.err).splitlines() if "OpenGL" in line]
    assert lines == ["no video: OpenGL is not available; install it with `apt-get install libosmesa6`"]
    assert set(json.loads((run / "eval.json").read_text())["policies"]) == {"residual", "base"}
    assert (run / "report.html").is_file()
    assert not (run / "video.mp4").exists()


@pytest.mark.usefixtures("no_gl")
def test_obs_mode__cameras_without_opengl_fail(fails: Fails, tmp_path: Path) -> None:
    command = ("train", "so101-paper", *TINY, "--obs-mode", "rgb+state", "--output-dir", tmp_path / "run")
    assert "OpenGL is not available; install it" in fails(*command)
    assert not (tmp_path / "run").exists()


def test_obs_cameras__unknown_camera_is_named(fails: Fails, tmp_path: Path) -> None:
    command = (
        "train",
        "so101-paper",
        *TINY,
        "--obs-mode",
        "rgb+state",
        "--obs-cameras",
        "tpo",
        "--output-dir",
        tmp_path / "run",
    )
    printed = fails(*command)
    assert "unknown camera 'tpo'; did you mean 'top'" in printed
    assert "wrist" in printed
    assert not (tmp_path / "run").exists()


def test_make_vec_env__wrong_settings_raise() -> None:
    with pytest.raises(ConfigError, match="tolernce"):
        make_vec_env("so101-paper", 2, tolernce=0.1)
    with pytest.raises(ConfigError, match="num_envs must be at least 1, not 0"):
        make_vec_env("so101-paper", 0)
    with pytest.raises(ConfigError, match="num_threads"):
        make_vec_env("so101-paper", 1, num_threads=-1)
    with pytest.raises(ConfigError, match="obs_mode must be one of"):
        make_vec_env("so101-paper", 1, obs_mode="depth")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["list"], ["--help"], ["--version"], ["train", "so101-paper", "--help"]], ids=" ".join
)
def test_main__closed_pipe_and_full_disk_at_stdout_end_quietly(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "residual_rl.cli.main", *arguments]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "residual-rl: error: [Errno 28] No space left on device\n")


def test_logger__full_disk_below_tensorboard_raises_write_error(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        logger.log({"a": 1.0}, 0)
        (events,) = (tmp_path / "tensorboard").iterdir()
        assert (tmp_path / "metrics.jsonl").stat().st_size + 50 < events.stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (events.stat().st_size, hard))
        try:
            with pytest.raises(WriteError, match="tensorboard: File too large"):
                logger.log({"a": 1.0}, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
