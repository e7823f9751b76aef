"""What users get wrong and machines do wrong: one clear line, a non-zero exit code, no traceback, and nothing lost."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from residual_rl import checkpoint
from residual_rl.build import make_vec_env
from residual_rl.checkpoint import CheckpointFolder
from residual_rl.cli.main import main
from residual_rl.envs import rendering
from residual_rl.envs.mujoco_physics import MujocoPhysics
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.files import WriteError
from residual_rl.learners.optimizer import FlatAdam
from residual_rl.logger import Logger
from residual_rl.registry import BASE_POLICIES, BasePolicySpec, register_base_policy
from residual_rl.tasks.so101_paper.robot import build_robot
from residual_rl.tasks.so101_paper.task import SO101Paper
from residual_rl.types import BasePolicy, Obs

TINY = ["--num-envs", "4", "--num-steps", "8", "--minibatch-size", "16", "--num-epochs", "1", "--hidden-sizes", "8", "8"]
TINY += ["--max-episode-steps", "20", "--eval-episodes", "2", "--num-threads", "1", "--save-freq", "32", "--eval-freq", "0"]

Fails = Callable[..., str]


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that must fail; gives the one line that it says."""

    def run(*arguments: str | Path, code: int = 2) -> str:
        capfd.readouterr()
        assert main([str(a) for a in arguments]) == code
        said = [line for line in capfd.readouterr().err.splitlines() if line and not re.match(r"(train|base|residual|zero): ", line)]
        # The logger's warnings and MuJoCo's own are not errors.
        said = [line for line in said if not line.startswith(("residual-rl: WARNING", "WARNING: Nan, Inf or huge value"))]
        assert len(said) == 1, said
        assert said[0].startswith("residual-rl: error: ")
        return said[0].removeprefix("residual-rl: error: ")

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "made"
    assert main(["train", "so101-paper", *TINY, "--total-timesteps", "64", "--output-dir", str(path)]) == 0
    return path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A run folder to spoil."""
    path = tmp_path / "run"
    subprocess.run(["cp", "-r", made, path], check=True)
    return path


# --- names and settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train so101-papr", "unknown task 'so101-papr'; did you mean 'so101-paper'"),
        ("eval so101-papr", "unknown task 'so101-papr'; did you mean 'so101-paper'"),
        ("train so101-paper --base-policy jacobain", "unknown base policy 'jacobain'; did you mean 'jacobian'?"),
        ("train so101-paper --expert-type=jacobain", "unknown base policy 'jacobain'; did you mean 'jacobian'?"),
        ("eval so101-paper --base-policy pid", "unknown base policy 'pid'; known: "),
        ("train so101-paper --num-envs 0", "num_envs must be at least 1, not 0"),
        ("train so101-paper --n-envs -4", "num_envs must be at least 1, not -4"),
        ("train so101-paper --total-timesteps -1", "total_timesteps must be at least 1, not -1"),
        ("train so101-paper --num-steps 0", "num_steps must be at least 1, not 0"),
        ("train so101-paper --hidden-sizes 8 0", "hidden_sizes must be at least 1 each, not (8, 0)"),
        ("train so101-paper --learning-rate nan", "learning_rate must be above 0, not nan"),
        ("train so101-paper --alpha 3", "residual_scale must be from 0 to 2"),
        ("train so101-paper --tolerance -0.01", "tolerance must be above 0, not -0.01"),
        ("train so101-paper --sheet-x 0.3 0.2", "sheet_x must be a range from low to high"),
        ("train so101-paper --seed 99999999", "seed must be from 0 to 4194303, not 99999999"),
        ("train so101-paper --num-envs 4 --num-steps 8 --minibatch-size 33", "minibatch_size is 33 but num_envs * num_steps is 32"),
        ("train so101-paper --obs-keys state speed", "unknown observation 'speed'"),
        ("train so101-paper --device cuda", "device 'cuda'"),
        ("train so101-paper --device gpu0", "device 'gpu0'"),
        ("eval so101-paper --n-episodes 0", "n_episodes must be at least 1, not 0"),
        ("eval so101-paper --eval-envs -1", "eval_envs must be at least 1, not -1"),
        ("eval so101-paper --first-seed -1", "first_seed must be 0 or more, not -1"),
        ("eval so101-paper --save-video", "--save-video needs a run folder"),
        ("train so101-paper --robot-xml no/such/file.xml", "no/such/file.xml: no such file"),
    ],
)
def test_a_wrong_setting_is_named_and_leaves_no_folder(
    arguments: str, message: str, fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(*arguments.split())
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_none_is_named(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["train", "so101-paper", "--num-envs", "many"])
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert "--num-envs" in said
    assert "'many'" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_with_something_in_it_is_not_written_into(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    message = fails("train", "so101-paper", *TINY, "--output-dir", tmp_path)
    assert f"{tmp_path} is not empty; choose another --output-dir or " in message
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_finished_run_is_not_written_over(fails: Fails, run: Path) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert "is not empty" in fails("train", "so101-paper", *TINY, "--output-dir", run)
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_a_folder_that_cannot_be_made(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    places = [tmp_path / "file" / "run", Path("/proc/run")]
    if os.geteuid() != 0:  # to root nothing is forbidden
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o555)
        places.append(closed / "run")
    for place in places:
        message = fails("train", "so101-paper", *TINY, "--output-dir", place)
        assert message.startswith(f"cannot write {place}")
        assert "choose" in message


def test_resuming_what_is_no_run(fails: Fails, tmp_path: Path) -> None:
    assert "holds no run to resume" in fails("train", "--resume", tmp_path)
    assert "holds no run to resume" in fails("train", "--resume", tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_resuming_a_run_without_checkpoints(fails: Fails, run: Path) -> None:
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    assert "holds no checkpoint to resume from" in fails("train", "--resume", run)


def test_resuming_when_all_checkpoints_are_damaged(fails: Fails, run: Path) -> None:
    for file in (run / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:1000])
    message = fails("train", "--resume", run)
    assert "can be loaded" in message
    assert "step_000000032.safetensors" in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "indices"),
        ("{}", "base_policy_id"),
        ('{"base_policy_id": "zero", "task_id": "so101-paper", "task": {"tolerence": 1}}', "did you mean 'tolerance'?"),
        ('{"base_policy_id": "gone", "task_id": "so101-paper"}', "unknown base policy 'gone'"),
    ],
)
def test_resuming_with_a_configuration_that_is_none(fails: Fails, run: Path, text: str, reason: str) -> None:
    (run / "config.json").write_text(text)
    message = fails("train", "--resume", run)
    assert f"{run}/config.json is not the configuration of a run" in message
    assert reason in message


def test_resuming_with_more_envs_than_the_checkpoint_has(fails: Fails, run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["run"]["num_envs"] = 5
    (run / "config.json").write_text(json.dumps(config))
    message = fails("train", "--resume", run)
    assert "4" in message
    assert "5" in message


def test_evaluating_what_is_no_run(fails: Fails, tmp_path: Path) -> None:
    assert f"{tmp_path} has no model yet" in fails("eval", tmp_path)
    assert "is no folder" in fails("eval", tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_figures_that_cannot_be_written(fails: Fails, run: Path, tmp_path: Path) -> None:
    (run / "eval.json").mkdir()
    assert f"cannot write {run}/eval.json" in fails("eval", run, "--n-episodes", "1")
    (tmp_path / "file").touch()
    assert "cannot write" in fails("eval", "so101-paper", "--n-episodes", "1", "--output", tmp_path / "file" / "x.json")


# --- files of models ------------------------------------------------------------------------------------------------


def newer(state: dict[str, Any]) -> bytes:
    data = checkpoint.to_bytes(state, "policy")
    return data.replace(b'\\"format_version\\":1', b'\\"format_version\\":9')


def tampered(state: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> bytes:
    change(state)
    return checkpoint.to_bytes(state, "policy")


def wider(state: dict[str, Any]) -> None:
    name = "actor.layers.0.weight"
    state["policy"][name] = torch.cat([state["policy"][name], torch.zeros(8, 1)], 1)


SPOILED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "truncated or no safetensors file"),
    "truncated": (lambda data: data[:-100], "truncated or no safetensors file"),
    "a flipped bit": (lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], "does not match|do not match its checksum"),
    "text": (lambda data: b"hello", "truncated or no safetensors file"),
    "pickle": (lambda data: pickle.dumps({"policy": 1}), "truncated or no safetensors file"),
    "of another kind": (lambda data: checkpoint.to_bytes({"x": 1}, "checkpoint"), "is a residual_rl checkpoint; expected a policy"),
    "of a later release": (lambda data: newer(checkpoint.from_bytes(data, "policy")), "has format version 9; this release knows up to 1"),
    "without settings": (lambda data: checkpoint.to_bytes({"policy": {}, "step": 1}, "policy"), "lacks config, residual_scale"),
    "with unknown settings": (
        lambda data: tampered(checkpoint.from_bytes(data, "policy"), lambda s: s["config"]["learner"].update(layers=3)),
        "unknown setting of PPOCfg 'layers'",
    ),
    "of an unknown task": (
        lambda data: tampered(checkpoint.from_bytes(data, "policy"), lambda s: s["config"].update(task_id="gone")),
        "unknown task 'gone'",
    ),
    "of another shape": (
        lambda data: tampered(checkpoint.from_bytes(data, "policy"), wider),
        r"actor.layers.0.weight has shape \[8, 32\], the settings make it \[8, 31\]",
    ),
    "of another net": (
        lambda data: tampered(checkpoint.from_bytes(data, "policy"), lambda s: s["policy"].pop("log_std")),
        r"missing \['log_std'\]",
    ),
}


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_file_that_is_no_policy(fails: Fails, run: Path, spoil: str) -> None:
    change, message = SPOILED[spoil]
    file = run / "best_model" / "policy.safetensors"
    file.write_bytes(change(file.read_bytes()))
    said = fails("eval", run, "--n-episodes", "1")
    assert re.search(message, said), said
    if "another shape" not in spoil and "another net" not in spoil:
        assert str(file) in said
    assert not (run / "eval.json").exists()


def test_a_safetensors_file_of_another_program(fails: Fails, run: Path) -> None:
    file = run / "best_model" / "policy.safetensors"
    save_file({"weight": torch.zeros(3)}, file)
    assert f"{file} is a safetensors file of another program" in fails("eval", run)


def test_a_model_that_does_not_exist(fails: Fails, run: Path) -> None:
    assert f"{run} has best, final" in fails("eval", run, "--model", "bset")
    assert "does not exist" in fails("eval", run, "--model", run / "gone.safetensors")
    assert "does not exist" in fails("eval", run, "--model", "interrupted")


def test_an_observation_that_the_policy_needs_and_the_env_has_no_more(fails: Fails, run: Path) -> None:
    assert "unknown observation 'state'" in fails("eval", run, "--n-episodes", "1", "--obs-mode", "rgb")


# --- the user's robot -----------------------------------------------------------------------------------------------


def test_a_robot_file_that_is_no_model(fails: Fails, tmp_path: Path) -> None:
    file = tmp_path / "robot.xml"
    command = ("train", "so101-paper", *TINY, "--output-dir", tmp_path / "run", "--robot-xml", file)
    file.write_text("<mujoco><worldbody>")
    assert f"robot model {file}: MuJoCo cannot read it" in fails(*command)
    file.write_bytes(b"\x00\x01binary")
    assert f"robot model {file}: MuJoCo cannot read it" in fails(*command)
    assert not (tmp_path / "run").exists()


def test_a_robot_with_other_joints(fails: Fails, tmp_path: Path) -> None:
    file = tmp_path / "robot.xml"
    spec = build_robot()
    spec.joint("wrist_roll").name = "wrist_spin"
    for element in [*spec.actuators, *spec.sensors, *spec.keys]:
        spec.delete(element)
    spec.compile()
    file.write_text(spec.to_xml())
    message = fails("train", "so101-paper", *TINY, "--output-dir", tmp_path / "run", "--robot-xml", file)
    assert message.startswith(f"robot model {file}: joint(s) wrist_roll missing; it has: ")
    assert "wrist_spin" in message


# --- base policies that fail in the middle of a run -----------------------------------------------------------------


class Failing(BasePolicy):
    """Zeros, up to the 24th step: it is asked at the reset, after each step, and for the final observations of step 20 besides."""

    inputs = {"state": (25,)}  # noqa: RUF012
    mode = "fine"

    def __init__(self) -> None:
        self.calls = 0

    def plan(self, obs: Obs, worlds: Tensor) -> Any:
        self.calls += 1
        zero = torch.zeros(len(worlds), 1, 6)
        if self.calls <= 26 or self.mode == "fine":
            return zero
        if self.mode == "raises":
            raise ValueError("the gripper\nis on fire")
        return {"shape": zero[:, 0], "chunk": zero.expand(-1, 2, -1), "list": zero.tolist(), "none": None, "nan": zero / 0}[self.mode]


def make_failing(cfg: None, env: VecEnv) -> Failing:
    return Failing()


@pytest.fixture
def failing() -> Iterator[type[Failing]]:
    register_base_policy(BasePolicySpec("failing", "fails", f"{__name__}:make_failing"))
    yield Failing
    del BASE_POLICIES._specs["failing"]


@pytest.mark.parametrize(
    ("mode", "code", "message"),
    [
        ("raises", 2, "base policy 'failing' failed: ValueError: the gripper is on fire"),
        ("shape", 2, "base policy 'failing' gave (4, 6); expected a tensor of shape (4, 1, 6)"),
        ("chunk", 2, "base policy 'failing' gave (4, 2, 6); expected a tensor of shape (4, 1, 6)"),
        ("list", 2, "base policy 'failing' gave list; expected a tensor of shape (4, 1, 6)"),
        ("none", 2, "base policy 'failing' gave NoneType; expected a tensor of shape (4, 1, 6)"),
        ("nan", 3, "the base action of base policy 'failing' is not finite in world(s) [0, 1, 2, 3]"),
    ],
)
def test_a_base_policy_that_fails_is_named_and_what_was_trained_is_kept(
    mode: str, code: int, message: str, failing: type[Failing], fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failing, "mode", mode)
    path = tmp_path / "run"
    command = ("train", "so101-paper", *TINY, "--base-policy", "failing", "--total-timesteps", "160", "--output-dir", path)
    said = fails(*command, code=code)
    assert said.startswith(message)
    latest = CheckpointFolder(path / "checkpoints").latest()
    assert latest is not None
    assert latest[0] == 96
    dump = path / "nonfinite_dump.safetensors"
    assert dump.exists() == (mode == "nan")
    if mode == "nan":
        assert str(dump) in said
        assert checkpoint.load(dump, "dump")["obs/state"].shape == (4, 25)
    monkeypatch.setattr(failing, "mode", "fine")
    assert main(["train", "--resume", str(path)]) == 0
    assert json.loads((path / "training_summary.json").read_text())["steps"] == 160


def test_a_base_policy_that_needs_what_the_env_has_not(
    failing: type[Failing], fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", "so101-paper", *TINY, "--base-policy", "failing", "--output-dir", tmp_path / "run")
    monkeypatch.setattr(failing, "inputs", {"gripper_camera": (8,)})
    assert "base policy 'failing' needs the observation 'gripper_camera' (8,); the env has " in fails(*command)
    monkeypatch.setattr(failing, "inputs", {"state": (26,)})
    assert "base policy 'failing' needs 'state' of shape (26,); the env gives (25,)" in fails(*command)
    assert list(tmp_path.iterdir()) == []


# --- NaN ------------------------------------------------------------------------------------------------------------


def nan_in_the_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the 12th step of the training's four worlds on, joint 0 of world 2 has no position."""
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
        if calls[0] == 4:  # two minibatches an iteration
            gradients = [gradients[0] * float("nan"), *gradients[1:]]
        step(optimizer, gradients)

    monkeypatch.setattr(FlatAdam, "step", spoiled)


@pytest.mark.parametrize(
    ("spoil", "message", "dumped"),
    [
        (
            nan_in_the_simulation,
            "the simulation diverged (NaN or huge values; MuJoCo warns BADQPOS) in world(s) [2]",
            ["state_before", "action", "seed", "step"],
        ),
        (nan_in_the_reward, "reward is not finite in world(s) [2]", []),
        (nan_in_the_observation, "goal is not finite in world(s) [2]", []),
        (nan_in_a_gradient, "the gradient of ", []),
    ],
)
def test_nan_is_named_and_dumped_and_reaches_no_checkpoint(
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
        said = fails("train", "so101-paper", *TINY, "--total-timesteps", "96", "--output-dir", path, code=3)
    assert said.startswith(message)
    assert said.endswith(f"the states before it are in {path}/nonfinite_dump.safetensors")
    dump = checkpoint.load(path / "nonfinite_dump.safetensors", "dump")
    assert set(dumped) <= set(dump)
    assert dump["last_obs"]["state"].shape == (4, 25)
    assert torch.isfinite(dump["last_obs"]["state"]).all()  # the observation before the step
    assert "policy" in dump["learner"]
    assert CheckpointFolder(path / "checkpoints").latest()[0] == 32  # type: ignore[index]
    assert main(["train", "--resume", str(path)]) == 0


def test_nan_in_an_evaluation_is_named(fails: Fails, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    nan_in_the_simulation(monkeypatch)
    assert "the simulation diverged" in fails("eval", run, "--n-episodes", "4", code=3)
    assert not (run / "eval.json").exists()


# --- what the machine lacks -----------------------------------------------------------------------------------------


@pytest.fixture
def no_gl(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise MissingDependencyError("OpenGL", "install it with `apt-get install libosmesa6`")

    monkeypatch.setattr(rendering, "gl_context_class", missing)


@pytest.mark.usefixtures("no_gl")
def test_without_opengl_there_is_no_video_and_all_else(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--n-episodes", "2", "--compare-base", "--save-video"]) == 0
    captured = capfd.readouterr()
    lines = [line for line in (captured.out + captured.err).splitlines() if "OpenGL" in line]
    assert lines == ["no video: OpenGL is not available; install it with `apt-get install libosmesa6`"]
    assert set(json.loads((run / "eval.json").read_text())["policies"]) == {"residual", "base"}
    assert (run / "report.html").is_file()
    assert not (run / "video.mp4").exists()


@pytest.mark.usefixtures("no_gl")
def test_without_opengl_cameras_cannot_be_observed(fails: Fails, tmp_path: Path) -> None:
    command = ("train", "so101-paper", *TINY, "--obs-mode", "rgb+state", "--output-dir", tmp_path / "run")
    assert "OpenGL is not available; install it" in fails(*command)
    assert not (tmp_path / "run").exists()


def test_an_unknown_camera(fails: Fails, tmp_path: Path) -> None:
    command = ("train", "so101-paper", *TINY, "--obs-mode", "rgb+state", "--obs-cameras", "tpo", "--output-dir", tmp_path / "run")
    said = fails(*command)
    assert "unknown camera 'tpo'; did you mean 'top'" in said
    assert "wrist" in said
    assert not (tmp_path / "run").exists()


def test_the_python_interface_says_the_same() -> None:
    with pytest.raises(ConfigError, match="tolernce"):
        make_vec_env("so101-paper", 2, tolernce=0.1)
    with pytest.raises(ConfigError, match="num_envs must be at least 1, not 0"):
        make_vec_env("so101-paper", 0)
    with pytest.raises(ConfigError, match="num_threads"):
        make_vec_env("so101-paper", 1, num_threads=-1)
    with pytest.raises(ConfigError, match="obs_mode must be one of"):
        make_vec_env("so101-paper", 1, obs_mode="depth")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["--version"], ["train", "so101-paper", "--help"]], ids=" ".join)
def test_a_reader_that_goes_away_and_a_full_disk_under_stdout(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "residual_rl.cli.main", *arguments]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "residual-rl: error: [Errno 28] No space left on device\n")


def test_a_disk_that_fills_under_tensorboard_raises_where_it_is_caught(tmp_path: Path) -> None:
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
