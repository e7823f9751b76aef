"""The env `so101_paper`: the task `so101-paper` for `lerobot-eval` and `lerobot-train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_IMAGES, OBS_STATE

from residual_rl.tasks.so101_paper.robot import JOINTS

GYM_ID = "lerobot_policy_residual_rl/SO101Paper-v0"
ENVIRONMENT_STATE_SIZE = 31
"""E; see `residual_rl.tasks.so101_paper.task.ENVIRONMENT_STATE`."""
gymnasium.register(
    GYM_ID,
    entry_point="residual_rl.lerobot.env:LeRobotEnv",
    order_enforce=False,  # LeRobot reads attributes, which Gymnasium's wrappers hide
    disable_env_checker=True,
)


@EnvConfig.register_subclass("so101_paper")
@dataclass
class SO101PaperEnvConfig(EnvConfig):
    """An episode of a seed is that of `residual-rl eval` with this seed."""

    # so101-paper or so101-paper-precise, and settings of it.
    task: str | None = "so101-paper"
    settings: dict[str, Any] = field(default_factory=dict)
    # What to do, for policies that read it.
    task_description: str = "Slide the sheet into the taped rectangle."
    # Observed cameras, and the size of their images [px].
    cameras: list[str] = field(default_factory=lambda: ["top", "wrist"])
    observation_height: int = 128
    observation_width: int = 128
    # Size of the frames of videos [px].
    render_height: int = 240
    render_width: int = 320
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        joints, image = (len(JOINTS),), (self.observation_height, self.observation_width, 3)
        self.features = {
            ACTION: PolicyFeature(FeatureType.ACTION, joints),
            "agent_pos": PolicyFeature(FeatureType.STATE, joints),
            "environment_state": PolicyFeature(FeatureType.ENV, (ENVIRONMENT_STATE_SIZE,)),
            **{f"pixels/{name}": PolicyFeature(FeatureType.VISUAL, image) for name in self.cameras},
        }
        self.features_map = {
            ACTION: ACTION,
            "agent_pos": OBS_STATE,
            "environment_state": OBS_ENV_STATE,
            **{f"pixels/{name}": f"{OBS_IMAGES}.{name}" for name in self.cameras},
        }

    @property
    def package_name(self) -> str:
        return "lerobot_policy_residual_rl"

    @property
    def gym_id(self) -> str:
        return GYM_ID

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "task_description": self.task_description,
            "cameras": tuple(self.cameras),
            "image_size": (self.observation_height, self.observation_width),
            "render_size": (self.render_height, self.render_width),
            "settings": self.settings,
        }
