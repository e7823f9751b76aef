"""The plugin's policy type `residual_rl`: LeRobot reads, runs, copies and refuses exported folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import export_case
import lerobot_case
import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_policy_config, make_pre_post_processors
from plugin_case import act, load

from lerobot_policy_residual_rl.configuration_residual_rl import ResidualRlConfig
from lerobot_policy_residual_rl.modeling_residual_rl import ResidualRlPolicy
from residual_rl.deployment.lerobot_folder import export
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.exported_policy import find_policy
from residual_rl.robots.arm_driver import Pose
from residual_rl.utils.consent import ConsentError

pytestmark = pytest.mark.lerobot

SEEDS = [31, 32]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export(find_policy(export_case.make_policy(tmp_path / "model")), tmp_path / "policy", "copy")
    return tmp_path / "policy"


@pytest.mark.parametrize("base", ["copy", "reference"])
@pytest.mark.parametrize("base_policy", ["jacobian", "lerobot"])
def test_residual_rl_policy__equals_the_run_bit_for_bit(base_policy: str, base: Any, tmp_path: Path) -> None:
    """Over an ACT of chunks of 8, of which 4 are executed, and over a controller."""
    settings: dict[str, Any] = {}
    if base_policy == "lerobot":
        settings["checkpoint"] = str(lerobot_case.make_checkpoint(tmp_path / "act"))
    model = export_case.make_policy(tmp_path / "model", base_policy, **settings)
    export(find_policy(model), tmp_path / "policy", base)
    run, parts = export_case.Run(model, SEEDS), load(tmp_path / "policy")
    assert isinstance(parts[0], ResidualRlPolicy)
    for _ in range(6):
        got = act(parts, state=run.joints, environment_state=run.environment)
        assert torch.equal(got, run.step()[1])


def test_residual_rl_policy__a_base_by_reference_that_changed_is_an_error(tmp_path: Path) -> None:
    act_folder = lerobot_case.make_checkpoint(tmp_path / "act")
    model = export_case.make_policy(tmp_path / "model", "lerobot", checkpoint=str(act_folder))
    export(find_policy(model), tmp_path / "policy", "reference")
    export(find_policy(model), tmp_path / "whole", "copy")
    lerobot_case.make_checkpoint(act_folder, dim_model=8)
    load(tmp_path / "whole")
    with pytest.raises(CheckpointError, match=r"act is not the base policy that .* SHA-256 differs"):
        load(tmp_path / "policy")


def test_reset__starts_all_rows_anew(tmp_path: Path) -> None:
    settings = {"checkpoint": str(lerobot_case.make_checkpoint(tmp_path / "act"))}
    model = export_case.make_policy(tmp_path / "model", "lerobot", **settings)
    export(find_policy(model), tmp_path / "policy", "copy")
    run, parts = export_case.Run(model, SEEDS), load(tmp_path / "policy")
    seen = {"state": run.joints, "environment_state": run.environment}
    first = act(parts, **seen)
    assert not torch.equal(act(parts, **seen), first)
    parts[0].reset()
    assert torch.equal(act(parts, **seen), first)


def test_predict_action_chunk__is_a_chunk_of_one_action(folder: Path, tmp_path: Path) -> None:
    run = export_case.Run(tmp_path / "model", SEEDS)
    batch = {"observation.state": run.joints, "observation.environment_state": run.environment}
    chunk = load(folder)[0].predict_action_chunk(batch)
    assert chunk.shape == (2, 1, 6)
    assert torch.equal(chunk[:, 0], load(folder)[0].select_action(batch))


def test_predict_action_chunk__images_become_bytes_again(tmp_path: Path, opengl: None) -> None:
    settings = {"obs_mode": "rgb+state", "image_size": (32, 48), "obs_cameras": ("top",)}
    learner = {"obs_keys": ("state", "top", "base_action")}
    model = export_case.make_policy(tmp_path / "model", "zero", **settings, **learner)
    export(find_policy(model), tmp_path / "policy", "copy")
    run, parts = export_case.Run(model, SEEDS), load(tmp_path / "policy")
    assert parts[0].config.image_features.keys() == {"observation.images.top"}
    for _ in range(3):
        image = run.env.obs["top"].movedim(-1, 1).float() / 255.0
        batch = {"state": run.joints, "environment_state": run.environment, "images.top": image}
        assert torch.equal(act(parts, **batch), run.step()[1])
    with pytest.raises(ConfigError, match="reads the camera 'top'; the cameras of the robot: none"):
        act(parts, state=run.joints, environment_state=run.environment)


# --- a robot, which gives joints only -----------------------------------------------------------------------


def sheet() -> Pose:
    """A pose source."""
    return Pose(np.array([0.3, 0.05, 0.001]), np.array([1.0, 0.0, 0.0, 0.0]), 1.0)


def test_select_action__without_a_pose_source_is_an_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"pose of the sheet: a robot needs a pose source"):
        act(load(folder), state=torch.zeros(1, 6))


def test_pose_source__is_taken_from_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{__name__}:sheet"
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    flag = f"--policy.pose_source={name}"
    monkeypatch.setattr(sys, "argv", ["lerobot-record", f"--policy.path={folder}", flag])
    parts = load(folder, f"--pose_source={name}")
    assert act(parts, state=torch.zeros(1, 6)).shape == (1, 6)
    assert parts[0].policy.pose_source is sheet


def test_pose_source__of_a_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pose_source": "antigravity:geohash"}))
    monkeypatch.setattr(sys, "argv", ["lerobot-record", f"--policy.path={folder}"])
    with pytest.raises(ConsentError, match=r"policy.pose_source \('antigravity:geohash'\) names code"):
        load(folder)
    assert "antigravity" not in sys.modules


def test_from_pretrained__a_processor_of_any_module_is_refused(folder: Path) -> None:
    """LeRobot imports the class that a step names; its commands read the policy first."""
    steps = [{"class": "antigravity.Step", "config": {}}]
    (folder / "policy_preprocessor.json").write_text(json.dumps({"name": "x", "steps": steps}))
    with pytest.raises(ConfigError, match=r"policy_preprocessor.json has a step that"):
        load(folder)
    assert "antigravity" not in sys.modules


# --- what LeRobot does with policies ------------------------------------------------------------------------


def test_save_pretrained__writes_a_folder_that_can_be_read(folder: Path, tmp_path: Path) -> None:
    policy, preprocessor, postprocessor = load(folder)
    policy.config.pose_source = "mine:pose"
    for part in (policy, preprocessor, postprocessor):
        part.save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["pose_source"] is None
    run = export_case.Run(tmp_path / "model", SEEDS)
    seen = {"state": run.joints, "environment_state": run.environment}
    assert torch.equal(act(load(tmp_path / "copy"), **seen), act(load(folder), **seen))


def test_make_residual_rl_pre_post_processors__are_those_of_the_folder(folder: Path, tmp_path: Path) -> None:
    for part in make_pre_post_processors(load(folder)[0].config):
        part.save_pretrained(tmp_path / "made")
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        assert json.loads((tmp_path / "made" / name).read_text()) == json.loads((folder / name).read_text())


def test_residual_rl_policy__is_not_trained_by_lerobot() -> None:
    features = {"observation.state": PolicyFeature(FeatureType.STATE, (6,))}
    action = {"action": PolicyFeature(FeatureType.ACTION, (6,))}
    config = make_policy_config("residual_rl", input_features=features, output_features=action)
    assert isinstance(config, ResidualRlConfig)
    policy = ResidualRlPolicy(config, dataset_stats=None, dataset_meta=None)
    for call in (lambda: policy.forward({}), config.get_optimizer_preset):
        with pytest.raises(NotImplementedError, match="residual-rl train"):
            call()
    with pytest.raises(ConfigError, match=r"--policy.path=FOLDER"):
        policy.select_action({"observation.state": torch.zeros(1, 6)})
    with pytest.raises(ValueError, match=r"observation.state and action"):
        ResidualRlPolicy(ResidualRlConfig())


def test_from_pretrained__a_truncated_folder_is_an_error(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"policy/model.safetensors is truncated"):
        load(folder)
