"""The policy type `residual_rl`: base and residual of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_residual_rl.configuration_residual_rl import ResidualRlConfig
from lerobot_policy_residual_rl.robot import ROBOTS
from residual_rl.deployment.lerobot_folder import copy_files, read, typed_pose_source
from residual_rl.deployment.robot_policy import RobotPolicy
from residual_rl.errors import ConfigError
from residual_rl.lerobot.checkpoint import check_processors
from residual_rl.lerobot.support import ENVIRONMENT_STATE, IMAGES, STATE
from residual_rl.robots.arm_driver import PoseSource


class ResidualRlPolicy(PreTrainedPolicy):
    """Base and residual of a run, in the robot's units. Each row of a batch has a state of its own."""

    config_class = ResidualRlConfig
    name = "residual_rl"

    def __init__(self, config: ResidualRlConfig, **kwargs: Any):  # noqa: ARG002 (LeRobot passes statistics)
        super().__init__(config)
        config.validate_features()
        self._folder: Path | None = None
        self._policy: RobotPolicy | None = None
        self._pose_source: PoseSource | None = None

    @classmethod
    def _load_as_safetensor(
        cls,
        model: ResidualRlPolicy,
        model_file: str,
        map_location: str,  # noqa: ARG003
        strict: bool,  # noqa: ARG003
    ) -> ResidualRlPolicy:
        """Read the folder of `model_file`; `from_pretrained` calls this, and LeRobot's commands read the
        processors of the folder afterwards."""
        folder, name = Path(model_file).parent, model.config.pose_source
        check_processors(folder)
        model._pose_source = None if name is None else typed_pose_source(name, folder)
        model._folder, model._policy = folder, read(folder)
        return model

    @property
    def policy(self) -> RobotPolicy:
        """The policy of the folder. Raises `ConfigError` if none was read."""
        if self._policy is None:
            raise _not_read()
        return self._policy

    def reset(self) -> None:
        """Start new episodes in all rows."""
        if self._policy is not None:
            self._policy.reset()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:  # noqa: ARG002
        """Joint targets [B, 1, J] for the observations in `batch`. Call it once per step."""
        images = {
            name: (255.0 * batch[f"{IMAGES}{name}"]).round().to(torch.uint8).movedim(-3, -1)
            for name in self.policy.cameras
            if f"{IMAGES}{name}" in batch
        }
        self.policy.pose_source = self._pose_source or simulated_pose_source()
        targets = self.policy.act(batch[STATE], batch.get(ENVIRONMENT_STATE), images)
        return targets[:, None].to(batch[STATE].device)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Joint targets [B, J] for the observations in `batch`. Call it once per step."""
        return self.predict_action_chunk(batch, **kwargs)[:, 0]

    def get_optim_params(self) -> dict[str, Any]:
        """None: LeRobot does not train it."""
        return {}

    def forward(self, batch: dict[str, Tensor]) -> NoReturn:
        """Raise `NotImplementedError`: LeRobot does not train it."""
        raise NotImplementedError("a residual is trained with `residual-rl train`, not with lerobot-train")

    def _save_pretrained(self, save_directory: Path, **kwargs: Any) -> None:  # noqa: ARG002
        if self._folder is None:
            raise _not_read()
        self.config._save_pretrained(save_directory)
        copy_files(self._folder, save_directory)


def simulated_pose_source() -> PoseSource | None:
    """The pose source of the robot `so101_sim`, if this process is connected to one."""
    return next(iter(ROBOTS.values())).arm.sheet_pose if len(ROBOTS) == 1 else None


def _not_read() -> ConfigError:
    return ConfigError(
        "a residual_rl policy is read from a folder: --policy.path=FOLDER, which "
        "`residual-rl export RUN --format lerobot --output-dir FOLDER` writes"
    )
