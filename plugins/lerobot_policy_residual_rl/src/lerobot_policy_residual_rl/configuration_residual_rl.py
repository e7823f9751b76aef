"""Settings of the policy type `residual_rl`, which `residual-rl export --format lerobot` writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lerobot.configs.policies import PreTrainedConfig


@PreTrainedConfig.register_subclass("residual_rl")
@dataclass
class ResidualRlConfig(PreTrainedConfig):
    """LeRobot's view of an exported residual; its own settings are in `model.safetensors`."""

    device: str | None = "cpu"
    pose_source: str | None = None
    """Poses of the task's object for a robot, as MODULE:CALLABLE. It names code that is run: only the command
    line can give it, `--policy.pose_source=...`."""

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> Any:
        raise NotImplementedError("a residual is trained with `residual-rl train`, not with lerobot-train")

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        """Raise `ValueError` without the joints' positions and targets."""
        if self.robot_state_feature is None or self.action_feature is None:
            raise ValueError("a residual_rl policy needs the features observation.state and action")

    def _save_pretrained(self, save_directory: Path) -> None:
        """Save without the pose source, which the next user must give again."""
        super(ResidualRlConfig, replace(self, pose_source=None))._save_pretrained(save_directory)
