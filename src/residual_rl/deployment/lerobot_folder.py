"""Runs as folders of LeRobot's policy type `residual_rl`, which `plugins/lerobot_policy_residual_rl` reads.

The folder has the four files of every LeRobot policy, and the files of the base policy in `base/`.
`model.safetensors` is an exported policy of this project, with all settings. Writing and reading a folder
need no LeRobot.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path, PurePath
from typing import Any, Literal

from residual_rl.base_policies.base_files import COPIES, take_files
from residual_rl.config import TrainCfg
from residual_rl.deployment.pose_source import load_pose_source
from residual_rl.deployment.robot_policy import RobotPolicy
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.exported_policy import LEROBOT_TYPE, FoundPolicy, load_policy, save_policy
from residual_rl.lerobot.checkpoint import CONFIG, POSTPROCESSOR, PREPROCESSOR, WEIGHTS
from residual_rl.lerobot.support import ACTION, IMAGES, STATE
from residual_rl.registry import TASKS
from residual_rl.robots.arm_driver import PoseSource
from residual_rl.utils.consent import require_typed
from residual_rl.utils.files import make_folder, plain, replacing_folder, write_json, writing
from residual_rl.utils.signature import SIGNATURE_FILE

_TO_CPU = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
_PREPROCESSOR = [
    {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
    {"registry_name": "to_batch_processor", "config": {}},
    _TO_CPU,
]
"""Steps that LeRobot's commands expect. Nothing is normalised: the policy reads the robot's own units."""


def export(found: FoundPolicy, folder: Path, base_files: Literal["copy", "reference"]) -> list[str]:
    """Write the policy `found` as a LeRobot policy to the new folder `folder`, after a test that it can be
    read.

    Args:
        found: the policy.
        folder: must not exist.
        base_files: copy the files of the base policy, or name them, with their SHA-256.

    Returns lines about the folder to print.

    Raises:
        ConfigError: the policy cannot be exported, or `folder` exists.
        CheckpointError: a file is missing or damaged.
        WriteError: the folder cannot be written.
    """
    exported = found.exported
    cfg = exported.cfg
    if cfg.residual.chunk == "whole":
        raise ConfigError(
            f"{found.file} was trained with --chunk whole, which LeRobot's policies cannot be: train it with "
            "--chunk step"
        )
    RobotPolicy(exported, found.file)  # whatever is wrong with the run is said of the run

    # Write all files, and read them again before the folder gets its name: trust in files is not exported.
    with replacing_folder(folder) as temp:
        temp.mkdir()
        base_cfg, files = take_files(cfg.base_policy_id, cfg.base, temp, base_files == "copy")
        run = dataclasses.replace(cfg.run, wandb_project=None, wandb_artifacts=False)
        cfg = dataclasses.replace(cfg, base=base_cfg, run=run)
        save_policy(temp / WEIGHTS, dataclasses.replace(exported, cfg=cfg, base_files=files))
        try:
            policy = read(temp)
        except (ConfigError, CheckpointError) as error:
            raise ConfigError(
                f"{found.file} cannot be exported: {str(error).replace(str(temp), str(folder))}"
            ) from error
        write_json(temp / CONFIG, _config(policy))
        write_json(temp / PREPROCESSOR, {"name": "policy_preprocessor", "steps": _PREPROCESSOR})
        write_json(temp / POSTPROCESSOR, {"name": "policy_postprocessor", "steps": [_TO_CPU]})

    # Say what the folder is, and what it needs.
    where = "copied to" if base_files == "copy" else "read from"
    taken = "".join(f", {where} {found.path}" for found in files)
    lines = [f"Policy: {folder}", f"Base policy: {cfg.base_policy_id}{taken}"]
    different = changed_settings(cfg)
    if different:
        lines.append(f"Settings of its env, --env.settings='{json.dumps(different)}'")
    if policy.needs_pose:
        lines.append(f"On a robot it needs a pose source, for {', '.join(policy.needs_pose)}.")
    return lines


def read(folder: Path) -> RobotPolicy:
    """The policy in a folder that `export` wrote.

    Raises:
        CheckpointError: a file is missing or damaged, or the base policy has changed.
        ConfigError: it does not fit its task.
        ConsentError: it is not the user's, and names code or an address.
    """
    return RobotPolicy(load_policy(folder / WEIGHTS), folder / WEIGHTS)


def changed_settings(cfg: TrainCfg) -> dict[str, Any]:
    """The task's settings that are not its defaults, by name, for an env in which the policy is evaluated."""
    defaults = dataclasses.asdict(TASKS.get(cfg.task_id).default_config())
    return {name: value for name, value in cfg.to_dict()["task"].items() if value != plain(defaults)[name]}


def copy_files(folder: Path, target: Path) -> None:
    """Copy the policy of `folder`, with its base policy's files, to the existing folder `target`.

    Only the files that the policy names are copied: others in the folder, such as links, may lead anywhere.

    Raises:
        CheckpointError: the policy is damaged.
        WriteError: a file cannot be written.
    """
    copied = [
        f"{files.path}/{name}"
        for files in load_policy(folder / WEIGHTS).base_files
        if PurePath(files.path).parts[:1] == (COPIES,) and ".." not in PurePath(files.path).parts
        for name in files.names
    ]
    for name in (WEIGHTS, SIGNATURE_FILE, *copied):
        if (folder / name).is_file():
            make_folder((target / name).parent)
            with writing(target / name):
                shutil.copyfile(folder / name, target / name)


def typed_pose_source(name: str, folder: Path) -> PoseSource:
    """The pose source MODULE:CALLABLE of a policy in `folder`, if it was typed on the command line of this
    process; the folder's own settings cannot name one.

    Raises `ConsentError` and `ConfigError`.
    """
    require_typed("policy.pose_source", name, sys.argv[1:], folder)
    return load_pose_source(name)


def _config(policy: RobotPolicy) -> dict[str, Any]:
    """LeRobot's settings of the policy, for its `config.json`."""
    joints = [len(policy.hardware.joint_names)]
    inputs: dict[str, Any] = {STATE: {"type": "STATE", "shape": joints}}
    for name, (height, width, channels) in policy.cameras.items():
        inputs[f"{IMAGES}{name}"] = {"type": "VISUAL", "shape": [channels, height, width]}
    return {
        "type": LEROBOT_TYPE,
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": {ACTION: {"type": "ACTION", "shape": joints}},
        "device": "cpu",
    }
