"""Mistakes of users: one clear line, a non-zero exit code, no traceback, and no lost data."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import FAILING_TINY as TINY
from tiny_runs import Fails

from residual_rl.cli.main import main
from residual_rl.runs import checkpoint
from residual_rl.tasks.so101_paper.robot import build_robot

# --- names and settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train so101-papr", "unknown task 'so101-papr'; did you mean 'so101-paper'"),
        ("eval so101-papr", "unknown task 'so101-papr'; did you mean 'so101-paper'"),
        (
            "train so101-paper --base-policy jacobain",
            "unknown base policy 'jacobain'; did you mean 'jacobian'",
        ),
        (
            "train so101-paper --expert-type=jacobain",
            "unknown base policy 'jacobain'; did you mean 'jacobian'",
        ),
        ("eval so101-paper --base-policy pid", "unknown base policy 'pid'; known: "),
        ("train so101-paper --num-envs 0", "num_envs must be from 1 to 1048576, not 0"),
        ("train so101-paper --n-envs -4", "num_envs must be from 1 to 1048576, not -4"),
        ("train so101-paper --total-timesteps -1", "total_timesteps must be at least 1, not -1"),
        ("train so101-paper --num-steps 0", "num_steps must be from 1 to 65536, not 0"),
        ("train so101-paper --hidden-sizes 8 0", "hidden_sizes must be from 1 to 8192 each, not (8, 0)"),
        ("train so101-paper --learning-rate nan", "learning_rate must be finite, not nan"),
        ("train so101-paper --alpha 3", "residual_scale must be from 0 to 2"),
        ("train so101-paper --tolerance -0.01", "tolerance must be above 0, not -0.01"),
        ("train so101-paper --sheet-x 0.3 0.2", "sheet_x must be a range from low to high"),
        ("train so101-paper --seed 99999999", "seed must be from 0 to 4194303, not 99999999"),
        (
            "train so101-paper --num-envs 4 --num-steps 8 --minibatch-size 33",
            "minibatch_size is 33 but num_envs * num_steps is 32",
        ),
        ("train so101-paper --obs-keys state speed", "unknown observation 'speed'"),
        ("train so101-paper --device cuda:99", "device 'cuda:99' cannot be used on this machine"),
        ("train so101-paper --device gpu0", "device 'gpu0' cannot be used on this machine"),
        ("train so101-paper --device meta", "device 'meta' cannot be used on this machine"),
        (
            "train so101-paper --sim-device cuda",
            "MuJoCo runs on the CPU only: the device of the envs must be cpu, not 'cuda'",
        ),
        (
            "train so101-paper --learner pppo",
            "unknown learner 'pppo'; did you mean 'ppo'?; known: gated-sac, policy-decorator, ppo, sac, td3",
        ),
        (
            "train --num-envs 8 so101-paper",
            "train needs a task id: put it first, residual-rl train TASK [options]",
        ),
        ("train", "train needs a task id: put it first"),
        ("train --resume", "--resume needs a run folder: residual-rl train --resume RUN"),
        ("train --resume --num-envs 4", "--resume needs a run folder: residual-rl train --resume RUN"),
        ("train --resume=", "--resume needs a run folder: residual-rl train --resume RUN"),
        ("train so101-paper --resume r", "a run is resumed with its own task: residual-rl train --resume r"),
        ("eval", "eval needs a run folder or a task id: put it first, residual-rl eval RUN|TASK [options]"),
        ("eval --n-episodes 3 so101-paper", "eval needs a run folder or a task id: put it first"),
        ("eval so101-papr", "so101-papr is neither a run folder nor a task: unknown task"),
        ("eval so101-paper --model best", "--model needs a run folder"),
        ("eval so101-paper --alpha 0", "--residual-scale needs a run folder"),
        ("eval so101-paper --num-threads -1", "num_threads must be from 0 to 1024, not -1"),
        ("eval so101-paper --n-episodes 0", "n_episodes must be at least 1, not 0"),
        ("eval so101-paper --eval-envs -1", "eval_envs must be from 1 to 1048576, not -1"),
        ("eval so101-paper --first-seed -1", "first_seed must be at least 0 and below"),
        (
            "eval so101-paper --first-seed 4611686018427387904",
            "first_seed must be at least 0 and below 4611686018427387904, not 4611686018427387904",
        ),
        ("view so101-paper --seed 18446744073709551616", "seed must be a whole number below 2^63"),
        (
            "train so101-paper --num-envs 1 --num-steps 1 --minibatch-size 1",
            "num_envs * num_steps is 1, and PPO compares the transitions of an update with each other",
        ),
        ("eval so101-paper --save-video", "--save-video needs a run folder"),
        ("train so101-paper --robot-xml no/such/file.xml", "no/such/file.xml: no such file"),
    ],
)
def test_main__wrong_setting_is_named_and_leaves_no_folder(
    arguments: str, message: str, fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(*arguments.split())
    assert list(tmp_path.iterdir()) == []


def test_num_envs__text_instead_of_a_number_is_named(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["train", "so101-paper", "--num-envs", "many"])
    assert ended.value.code == 2
    printed = capfd.readouterr().err
    assert "--num-envs" in printed
    assert "'many'" in printed
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


# --- folders ------------------------------------------------------------------------------------------------


def test_output_dir__nonempty_folder_is_refused(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    message = fails("train", "so101-paper", *TINY, "--output-dir", tmp_path)
    assert f"{tmp_path} is not empty; choose another --output-dir, or " in message
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_output_dir__finished_run_is_not_overwritten(fails: Fails, run: Path) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert "is not empty" in fails("train", "so101-paper", *TINY, "--output-dir", run)
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_output_dir__folder_that_cannot_be_created_is_named(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    places = [tmp_path / "file" / "run", Path("/proc/run")]
    if os.geteuid() != 0:  # root may write anywhere
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o555)
        places.append(closed / "run")
    for place in places:
        message = fails("train", "so101-paper", *TINY, "--output-dir", place)
        assert message.startswith(f"cannot write {place}")
        assert "choose" in message


def test_resume__folder_without_a_run_fails(fails: Fails, tmp_path: Path) -> None:
    assert "contains no run to resume" in fails("train", "--resume", tmp_path)
    assert "contains no run to resume" in fails("train", "--resume", tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_resume__nothing_is_written_for_a_path_that_cannot_be_resumed(fails: Fails, run: Path) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for command in ("train", "distill", "sweep", "imitate"):
        for part in ("final_model", "final_model/policy.safetensors"):
            assert f"residual-rl {command} --resume {run}" in fails(command, "--resume", run / part)
    for command in ("distill", "sweep", "imitate"):
        assert f"residual-rl train --resume {run}" in fails(command, "--resume", run / "checkpoints")
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_resume__parts_of_a_run_are_accepted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("config.json", "checkpoints"):
        assert main(["train", "--resume", str(run / part)]) == 0
        assert f"Run folder: {run}\n" in capsys.readouterr().out
        assert main(["eval", str(run / part), "--n-episodes", "1"]) == 0
    assert not (run / "checkpoints" / "command.txt").exists()


def test_resume__run_without_checkpoints_fails(fails: Fails, run: Path) -> None:
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    assert "has no checkpoint to resume from" in fails("train", "--resume", run)
    (run / "training_summary.json").unlink()  # as after kill -9
    assert "has no checkpoint to resume from" in fails("train", "--resume", run)


def test_resume__fails_if_all_checkpoints_are_damaged(fails: Fails, run: Path) -> None:
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
        (
            '{"base_policy_id": "zero", "task_id": "so101-paper", "task": {"tolerence": 1}}',
            "did you mean 'tolerance'?",
        ),
        ('{"base_policy_id": "gone", "task_id": "so101-paper"}', "unknown base policy 'gone'"),
    ],
)
def test_resume__invalid_configuration_is_named(fails: Fails, run: Path, text: str, reason: str) -> None:
    (run / "config.json").write_text(text)
    message = fails("train", "--resume", run)
    assert f"{run}/config.json is not the configuration of a run" in message
    assert reason in message


def test_resume__other_number_of_envs_than_in_the_checkpoint_fails(fails: Fails, run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["run"]["num_envs"] = 5
    (run / "config.json").write_text(json.dumps(config))
    message = fails("train", "--resume", run)
    assert "4" in message
    assert "5" in message


def test_eval__folder_without_a_run_fails(fails: Fails, tmp_path: Path) -> None:
    assert f"{tmp_path} has no model yet" in fails("eval", tmp_path)
    assert f"{tmp_path}/nowhere is neither a run folder nor a task" in fails("eval", tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_eval__results_that_cannot_be_written_fail(fails: Fails, run: Path, tmp_path: Path) -> None:
    (run / "eval.json").mkdir()
    assert f"cannot write {run}/eval.json" in fails("eval", run, "--n-episodes", "1")
    (tmp_path / "file").touch()
    assert "cannot write" in fails(
        "eval", "so101-paper", "--n-episodes", "1", "--output", tmp_path / "file" / "x.json"
    )


# --- files of models ----------------------------------------------------------------------------------------


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
    "empty": (lambda data: b"", "truncated or not a safetensors file"),
    "truncated": (lambda data: data[:-100], "truncated or not a safetensors file"),
    "a flipped bit": (
        lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
        "does not match|do not match its checksum",
    ),
    "text": (lambda data: b"hello", "truncated or not a safetensors file"),
    "pickle": (lambda data: pickle.dumps({"policy": 1}), "truncated or not a safetensors file"),
    "of another kind": (
        lambda data: checkpoint.to_bytes({"x": 1}, "checkpoint"),
        "is a residual_rl checkpoint; expected a policy",
    ),
    "of a later release": (
        lambda data: newer(checkpoint.from_bytes(data, "policy")),
        "has format version 9; this release reads up to version 1",
    ),
    "without settings": (
        lambda data: checkpoint.to_bytes({"policy": {}, "step": 1}, "policy"),
        "lacks config, residual_scale",
    ),
    "with unknown settings": (
        lambda data: tampered(
            checkpoint.from_bytes(data, "policy"), lambda s: s["config"]["learner"].update(layers=3)
        ),
        "unknown setting of PPOCfg 'layers'",
    ),
    "of an unknown task": (
        lambda data: tampered(
            checkpoint.from_bytes(data, "policy"), lambda s: s["config"].update(task_id="gone")
        ),
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
def test_eval__invalid_policy_file_is_named(fails: Fails, run: Path, spoil: str) -> None:
    change, message = SPOILED[spoil]
    file = run / "best_model" / "policy.safetensors"
    file.write_bytes(change(file.read_bytes()))
    printed = fails("eval", run, "--n-episodes", "1")
    assert re.search(message, printed), printed
    if "another shape" not in spoil and "another net" not in spoil:
        assert str(file) in printed
    assert not (run / "eval.json").exists()


def test_eval__safetensors_file_of_another_program_is_refused(fails: Fails, run: Path) -> None:
    file = run / "best_model" / "policy.safetensors"
    save_file({"weight": torch.zeros(3)}, file)
    assert f"{file} is a safetensors file of another program" in fails("eval", run)


def test_model__unknown_name_lists_the_models_of_the_run(fails: Fails, run: Path) -> None:
    assert f"{run} has best, final" in fails("eval", run, "--model", "bset")
    assert "does not exist" in fails("eval", run, "--model", run / "gone.safetensors")
    assert "does not exist" in fails("eval", run, "--model", "interrupted")


def test_eval__missing_observation_of_the_policy_is_named(fails: Fails, run: Path) -> None:
    message = fails("eval", run, "--n-episodes", "1", "--obs-mode", "rgb")
    assert message.startswith("the env has no `state`, but images (top, wrist): use --obs-mode rgb+state")


@pytest.mark.parametrize("learner", ["sac", "gated-sac", "td3", "policy-decorator"])
def test_obs_mode__images_alone_fail_with_a_hint(fails: Fails, tmp_path: Path, learner: str) -> None:
    message = fails(
        "train", "so101-paper", "--learner", learner, "--output-dir", tmp_path / "run", "--obs-mode", "rgb"
    )
    assert (
        message == "the env has no `state`, but images (top, wrist): use --obs-mode rgb+state, or train with"
        " --learner ppo, the only one that learns from images, or name vectors in --obs-keys"
    )
    assert not (tmp_path / "run").exists()


def test_model__without_a_run_or_given_twice_fails(fails: Fails, run: Path, tmp_path: Path) -> None:
    alone = (run / "best_model").rename(tmp_path / "alone")
    assert f"{alone} is a model outside of a run folder" in fails("eval", alone, "--n-episodes", "1")
    assert "is a model already: leave out --model best" in fails(
        "eval", run / "final_model", "--model", "best"
    )
    assert "residual_scale must be from 0 to 2" in fails("eval", run, "--model", "final", "--alpha", "3")


# --- the user's robot ---------------------------------------------------------------------------------------


def test_robot_xml__invalid_file_is_named(fails: Fails, tmp_path: Path) -> None:
    file = tmp_path / "robot.xml"
    command = ("train", "so101-paper", *TINY, "--output-dir", tmp_path / "run", "--robot-xml", file)
    file.write_text("<mujoco><worldbody>")
    assert f"robot model {file}: MuJoCo cannot read it" in fails(*command)
    file.write_bytes(b"\x00\x01binary")
    assert f"robot model {file}: MuJoCo cannot read it" in fails(*command)
    assert not (tmp_path / "run").exists()


def test_robot_xml__missing_joint_is_named(fails: Fails, tmp_path: Path) -> None:
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
