"""The plugin's policy as LeRobot's commands load and query it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from torch import Tensor

import lerobot_policy_residual_rl  # noqa: F401 (registers the policy type)


def load(folder: Path, *flags: str) -> tuple[Any, Any, Any]:
    """Policy, pre- and postprocessor, as LeRobot's commands make them for `--policy.path=FOLDER`."""
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=list(flags))
    config.pretrained_path = folder
    policy = get_policy_class(config.type).from_pretrained(str(folder), config=config)
    overrides = {
        "device_processor": {"device": config.device},
        "rename_observations_processor": {"rename_map": {}},
    }
    return policy, *make_pre_post_processors(
        config, pretrained_path=str(folder), preprocessor_overrides=overrides
    )


def act(parts: tuple[Any, Any, Any], **batch: Tensor) -> Tensor:
    """One action as LeRobot's loops select it, for features without the prefix `observation.`."""
    policy, preprocessor, postprocessor = parts
    named: dict[str, Any] = {f"observation.{name}": value for name, value in batch.items()}
    with torch.inference_mode():
        action = postprocessor(policy.select_action(preprocessor({**named, "task": "slide the sheet"})))
    return action.clone()
