"""Folders of the policy type `residual_rl`: their files, what damages them, and what they may not do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import export_case
import il_case
import pytest
import tiny_runs
import torch

from residual_rl.base_policies import base_files
from residual_rl.base_policies.executor import make_base_policy
from residual_rl.base_policies.model import ModelCfg
from residual_rl.deployment.lerobot_folder import copy_files, export, read, typed_pose_source
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.exported_policy import find_policy, load_policy, save_policy
from residual_rl.lerobot.checkpoint import check_processors
from residual_rl.runs import checkpoint
from residual_rl.utils.consent import ConsentError
from residual_rl.utils.signature import SIGNATURE_FILE

WEIGHTS = "model.safetensors"


@pytest.fixture
def il(tmp_path: Path) -> Path:
    """The folder of an imitation model."""
    (tmp_path / "il").mkdir()
    il_case.model().save(tmp_path / "il" / WEIGHTS)
    (tmp_path / "il" / "config.json").write_text("{}")  # a file that the policy does not need
    return tmp_path / "il"


def exported(folder: Path, base_policy: str = "jacobian", base: Any = "copy", **settings: Any) -> Path:
    """The folder of an exported policy."""
    model = export_case.make_policy(folder / "model", base_policy, **settings)
    export(find_policy(model), folder / "policy", base)
    return folder / "policy"


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_find_policy__accepts_a_folder_that_was_exported_for_lerobot(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    assert find_policy(folder).file == folder / WEIGHTS
    (folder / "config.json").write_text('{"type": "act"}')  # a policy of LeRobot itself
    with pytest.raises(CheckpointError, match="no model yet"):
        find_policy(folder)


def test_export__writes_the_files_of_a_lerobot_policy(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    assert files(folder) == ["config.json", WEIGHTS, "policy_postprocessor.json", "policy_preprocessor.json"]
    assert json.loads((folder / "config.json").read_text()) == {
        "type": "residual_rl",
        "n_obs_steps": 1,
        "input_features": {"observation.state": {"type": "STATE", "shape": [6]}},
        "output_features": {"action": {"type": "ACTION", "shape": [6]}},
        "device": "cpu",
    }
    read_back, model = load_policy(folder / WEIGHTS), load_policy(tmp_path / "model" / "policy.safetensors")
    assert read_back.cfg == model.cfg
    assert (read_back.residual_scale, read_back.step) == (export_case.SCALE, 64)
    assert read_back.weights.keys() == model.weights.keys()


def test_export__equal_policies_give_equal_files(tmp_path: Path, il: Path) -> None:
    first = exported(tmp_path, "il", checkpoint=str(il))
    export(find_policy(tmp_path / "model"), tmp_path / "again", "copy")
    assert tiny_runs.files(first) == tiny_runs.files(tmp_path / "again")


def test_export__says_what_the_folder_needs(tmp_path: Path, il: Path) -> None:
    model = export_case.make_policy(tmp_path / "model", "il", checkpoint=str(il))
    assert export(find_policy(model), tmp_path / "policy", "copy") == [
        f"Policy: {tmp_path / 'policy'}",
        "Base policy: il, copied to base/0",
        "Settings of its env, --env.settings='"
        '{"tolerance": 0.01, "success_hold_steps": 5, "max_episode_steps": 20}\'',
        "On a robot it needs a pose source, for state.",
    ]
    assert (
        export(find_policy(model), tmp_path / "short", "reference")[1] == f"Base policy: il, read from {il}"
    )


def test_export__with_cameras_has_a_feature_for_each(tmp_path: Path) -> None:
    settings = {"obs_mode": "rgb+state", "image_size": (32, 48), "obs_cameras": ("top",)}
    learner = {"obs_keys": ("state", "top", "base_action")}
    folder = exported(tmp_path, "zero", **settings, **learner)
    features = json.loads((folder / "config.json").read_text())["input_features"]
    assert features["observation.images.top"] == {"type": "VISUAL", "shape": [3, 32, 48]}


def test_export__leaves_out_what_concerns_the_training(tmp_path: Path) -> None:
    folder = exported(tmp_path, wandb_project="mine")
    assert load_policy(folder / WEIGHTS).cfg.run.wandb_project is None
    assert not (folder / SIGNATURE_FILE).exists()  # nothing in it needs one


def test_export__an_existing_folder_is_an_error(tmp_path: Path) -> None:
    model = export_case.make_policy(tmp_path / "model")
    (tmp_path / "policy").mkdir()
    with pytest.raises(ConfigError, match=r"policy already exists; choose another --output-dir"):
        export(find_policy(model), tmp_path / "policy", "copy")


def test_export__a_policy_that_cannot_be_read_leaves_no_folder(tmp_path: Path, il: Path) -> None:
    model = export_case.make_policy(tmp_path / "model", "il", checkpoint=str(il))
    (il / WEIGHTS).write_bytes(b"short")
    with pytest.raises(ConfigError, match=r"model/policy.safetensors, .*/il/model.safetensors is truncated"):
        export(find_policy(model), tmp_path / "policy", "copy")
    assert not (tmp_path / "policy").exists()
    assert not list(tmp_path.glob(".policy*"))


def test_export__whole_chunks_are_an_error(tmp_path: Path, il: Path) -> None:
    model = export_case.make_policy(tmp_path / "model", "il", checkpoint=str(il), chunk="whole")
    with pytest.raises(ConfigError, match="--chunk whole, which LeRobot's policies cannot be"):
        export(find_policy(model), tmp_path / "policy", "copy")


def test_export__a_run_as_base_is_an_error(tmp_path: Path) -> None:
    first = export_case.make_policy(tmp_path / "first")
    with pytest.raises(
        ConfigError, match=r"base policy 'model' reads .*first, which cannot be exported with it"
    ):
        exported(tmp_path, "model", checkpoint=str(first))


# --- the base policy's files --------------------------------------------------------------------------------


def test_read__the_folder_alone_is_enough(tmp_path: Path, il: Path) -> None:
    folder = exported(tmp_path, "il", checkpoint=str(il))
    assert files(folder)[0] == f"base/0/{WEIGHTS}"
    run = export_case.Run(tmp_path / "model", [5])
    expected = read(folder).act(run.joints, run.environment)
    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved)
    shutil.rmtree(il)
    assert torch.equal(read(moved).act(run.joints, run.environment), expected)


def test_read__a_base_that_changed_is_an_error(tmp_path: Path, il: Path) -> None:
    copied = exported(tmp_path, "il", checkpoint=str(il))
    export(find_policy(tmp_path / "model"), tmp_path / "short", "reference")
    read(tmp_path / "short")
    il_case.model(sampling_steps=1).save(il / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"il is not the base policy that .* SHA-256 differs"):
        read(tmp_path / "short")
    read(copied)
    (il / WEIGHTS).unlink()
    with pytest.raises(
        CheckpointError, match=r"il/model.safetensors, .*exported without its base policy, does not"
    ):
        read(tmp_path / "short")


def test_export__a_base_of_another_name_must_be_copied(tmp_path: Path, il: Path) -> None:
    last = (il / WEIGHTS).rename(il / "last.safetensors")
    read(exported(tmp_path, "il", checkpoint=str(last)))
    with pytest.raises(ConfigError, match=r"last.safetensors cannot be named by its folder.* copy"):
        export(find_policy(tmp_path / "model"), tmp_path / "short", "reference")


@pytest.mark.parametrize("name", [WEIGHTS, f"base/0/{WEIGHTS}"])
def test_read__a_truncated_file_is_an_error(tmp_path: Path, il: Path, name: str) -> None:
    folder = exported(tmp_path, "il", checkpoint=str(il))
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"truncated|SHA-256 differs"):
        read(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        read(folder)


def test_read__a_relative_path_never_means_the_current_folder(
    tmp_path: Path, il: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported(tmp_path, "il", checkpoint=str(il))
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder / "base", elsewhere / "base")
    il_case.model(sampling_steps=1).save(elsewhere / "base" / "0" / WEIGHTS)
    monkeypatch.chdir(elsewhere)
    read(folder)


def test_copy_files__the_copy_is_complete(tmp_path: Path, il: Path) -> None:
    folder = exported(tmp_path, "il", checkpoint=str(il))
    (tmp_path / "copy").mkdir()
    copy_files(folder, tmp_path / "copy")
    assert files(tmp_path / "copy") == [f"base/0/{WEIGHTS}", WEIGHTS]
    read(tmp_path / "copy")


def test_export__the_file_is_a_base_policy_of_this_package_too(tmp_path: Path, il: Path) -> None:
    folder = exported(tmp_path, "il", checkpoint=str(il))
    run = export_case.Run(tmp_path / "model", [5, 6])
    policy = make_base_policy("model", ModelCfg(str(folder / WEIGHTS)), run.env.vec_env)
    got = policy.act(run.env.obs)
    assert torch.equal(got, run.step()[0])


# --- what a foreign folder may not do -----------------------------------------------------------------------


@pytest.fixture
def gift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the module `gift` writes when it is imported."""
    ran = tmp_path / "ran"
    code = ["def choose(obs): return obs['goal'][:, 0].long() * 0", "def pose(): ..."]
    (tmp_path / "gift.py").write_text("\n".join([f"open({str(ran)!r}, 'w').close()", *code]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gift", raising=False)
    return ran


def test_read__a_foreign_folder_imports_nothing(tmp_path: Path, gift: Path) -> None:
    switch = {"policies": ("jacobian", "zero"), "mode": "switch", "switch": "gift:choose"}
    own = exported(tmp_path, "hybrid", **switch)
    assert gift.exists()  # the user's own settings
    read(own)
    gift.unlink()
    del sys.modules["gift"]
    (own / SIGNATURE_FILE).unlink()
    with pytest.raises(ConsentError, match=r"base.switch \('gift:choose'\), which names code to import"):
        read(own)
    assert not gift.exists()


def test_read__a_foreign_folder_cannot_name_a_repository_on_a_hub(tmp_path: Path, il: Path) -> None:
    """The place of a base policy is a path, never a name that is downloaded."""
    folder = exported(tmp_path, "il", checkpoint=str(il))
    policy = load_policy(folder / WEIGHTS)
    (taken,) = policy.base_files
    policy.base_files = (dataclasses.replace(taken, path="owner/name"),)
    save_policy(folder / WEIGHTS, policy)
    with pytest.raises(CheckpointError, match=r"policy/owner/name/model.safetensors.* does not exist"):
        read(folder)


def test_typed_pose_source__comes_from_the_command_line_only(
    tmp_path: Path, gift: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for argv in ([], ["--policy.pose_source=other:pose"], ["--policy.path", "gift:pose"]):
        monkeypatch.setattr(sys, "argv", ["lerobot-record", *argv])
        with pytest.raises(ConsentError, match=r"--policy.pose_source=gift:pose"):
            typed_pose_source("gift:pose", tmp_path)
        assert not gift.exists()
    for argv in (["--policy.pose_source=gift:pose"], ["--policy.pose_source", "gift:pose"]):
        monkeypatch.setattr(sys, "argv", ["lerobot-record", *argv])
        assert typed_pose_source("gift:pose", tmp_path)() is None
    with pytest.raises(ConsentError):
        typed_pose_source("gift:other", tmp_path)


@pytest.mark.parametrize("name", ["../../il/model.safetensors", "/etc/passwd", "", ".."])
def test_base_files__a_name_that_leads_out_of_its_folder_is_an_error(
    name: str, tmp_path: Path, il: Path
) -> None:
    folder = exported(tmp_path, "il", checkpoint=str(il))
    changed_base_files(folder, names=[name])
    with pytest.raises(CheckpointError, match="names must be the names of files in a folder"):
        read(folder)


def test_base_files__no_files_have_no_hash_to_compare(tmp_path: Path, il: Path) -> None:
    folder = exported(tmp_path, "il", checkpoint=str(il))
    changed_base_files(folder, names=[], sha256=hashlib.sha256().hexdigest())
    with pytest.raises(CheckpointError, match="not nothing"):
        read(folder)


@pytest.mark.parametrize("path", ["a" * 5000, "/proc/1/root/x", "a\0b", "\x1b[2J"])
def test_read__a_path_that_cannot_be_opened_is_an_error(path: str, tmp_path: Path, il: Path) -> None:
    folder = exported(tmp_path, "il", checkpoint=str(il))
    changed_base_files(folder, path=path)
    with pytest.raises(CheckpointError, match="does not exist") as error:
        read(folder)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_read__a_device_in_place_of_the_weights_is_an_error(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="it is not a regular file"):
        read(folder)


def test_copy_files__copies_what_the_policy_names_and_nothing_else(tmp_path: Path, il: Path) -> None:
    """A folder from somebody else may have links to endless files, and links that form a tree of 2^40."""
    folder = exported(tmp_path, "il", checkpoint=str(il))
    (folder / "base" / "0" / "endless").symlink_to("/dev/zero")
    for name in ("one", "two"):
        (folder / "base" / name).symlink_to(".")
    (tmp_path / "copy").mkdir()
    copy_files(folder, tmp_path / "copy")
    assert files(tmp_path / "copy") == [f"base/0/{WEIGHTS}", WEIGHTS]


def test_take_files__a_link_to_a_device_is_not_copied(tmp_path: Path, il: Path) -> None:
    (il / "zero").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="zero, a file of the base policy, is missing or not a regular"):
        base_files._copied({"zero": il / "zero"}, tmp_path / "copied")


def test_check_processors__a_step_of_any_module_is_refused(tmp_path: Path, gift: Path) -> None:
    folder = exported(tmp_path)
    check_processors(folder)
    file = folder / "policy_preprocessor.json"
    file.write_text(json.dumps({"name": "policy_preprocessor", "steps": [{"class": "gift.Step"}]}))
    with pytest.raises(ConfigError, match=r"policy_preprocessor.json has a step that .* does not write"):
        check_processors(folder)
    assert not gift.exists()


def changed_base_files(folder: Path, **values: Any) -> None:
    """Change what the policy in `folder` says of its base policy's files; checksums fit."""
    state = checkpoint.load(folder / WEIGHTS, "policy")
    state["base_files"][0].update(values)
    checkpoint.save(folder / WEIGHTS, state, "policy")
