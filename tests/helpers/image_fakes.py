"""The point task of `fakes` with a camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import fakes
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from torch import Tensor

from residual_rl.registry import TaskSpec
from residual_rl.types import Obs

SIZE = 16


@dataclass(frozen=True)
class SeenPointCfg(fakes.PointCfg):
    """A point in the plane must move close to the origin; a camera observes it."""

    obs_mode: Literal["rgb", "rgb+state"] = "rgb"
    """The same setting as in tasks with cameras."""


class SeenPointEnv(fakes.PointEnv):
    """`fakes.PointEnv` with the observation `picture`: the plane from -1 to 1 m in 16 x 16 pixels, with the
    point as a white square of 3 x 3 pixels."""

    def __init__(self, cfg: SeenPointCfg, num_envs: int, num_threads: int = 0, device: str = "cpu"):
        super().__init__(cfg, num_envs, num_threads, device)
        self.obs_mode = cfg.obs_mode
        named: dict[str, Any] = dict(self.single_observation_space.spaces)  # type: ignore[attr-defined]
        if cfg.obs_mode == "rgb":
            del named["state"]
        self.single_observation_space = spaces.Dict(
            {**named, "picture": spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)}
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def observations(self) -> Obs:
        obs = super().observations()
        if self.obs_mode == "rgb":
            del obs["state"]
        return {**obs, "picture": picture(obs["position"])}


def picture(position: Tensor) -> Tensor:
    """Images [B, 16, 16, 3] uint8 of points at `position` [B, 2]; points outside are drawn at the edge."""
    centre = ((position + 1.0) * (SIZE / 2)).long().clamp(0, SIZE - 1)
    near = (torch.arange(SIZE) - centre[:, :, None]).abs() <= 1  # [B, 2, 16]
    white = near[:, 1, :, None] & near[:, 0, None, :]
    return (255 * white[..., None].expand(-1, -1, -1, 3)).to(torch.uint8)


SEEN_POINT_TASK = TaskSpec(
    id="seen-point",
    summary="a point with a camera",
    config="image_fakes:SeenPointCfg",
    make="image_fakes:SeenPointEnv",
    base_policy="zero",
)
